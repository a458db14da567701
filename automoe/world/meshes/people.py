"""People: one jointed figure, walking as a pedestrian or seated as a rider.

A figure is drawn once (`Look`: height, build, skin, hair, clothes) and posed by joint positions, so that the same
generator gives the same person in every phase of a step.
"""

# ruff: noqa: RUF005 (vectors are added here, not lists joined)
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from automoe.poses import rotation_z
from automoe.world.meshes.primitives import Builder, Soup, assemble, box, ellipsoid, tube
from automoe.world.parts import Asset, Material

SKINS = {
    "pale": (0.86, 0.68, 0.58),
    "fair": (0.78, 0.58, 0.46),
    "olive": (0.66, 0.47, 0.34),
    "brown": (0.46, 0.30, 0.21),
    "dark": (0.28, 0.18, 0.13),
}
HAIRS = {
    "black": (0.05, 0.045, 0.04),
    "brown": (0.20, 0.12, 0.07),
    "blond": (0.66, 0.50, 0.28),
    "grey": (0.55, 0.54, 0.53),
    "auburn": (0.36, 0.15, 0.07),
}
TOPS = {
    "white": (0.84, 0.84, 0.82),
    "black": (0.07, 0.07, 0.08),
    "grey": (0.42, 0.43, 0.45),
    "red": (0.64, 0.10, 0.11),
    "navy": (0.09, 0.12, 0.27),
    "blue": (0.20, 0.38, 0.66),
    "green": (0.16, 0.36, 0.22),
    "olive": (0.34, 0.34, 0.20),
    "yellow": (0.86, 0.68, 0.14),
    "orange": (0.84, 0.38, 0.10),
    "pink": (0.82, 0.48, 0.56),
    "purple": (0.34, 0.18, 0.42),
    "beige": (0.70, 0.60, 0.46),
    "teal": (0.08, 0.42, 0.44),
}
BOTTOMS = ("denim", "black", "grey", "beige", "navy", "olive")
DENIM = (0.17, 0.25, 0.40)
SHOES = Material("shoes", (0.10, 0.09, 0.09, 1.0), specular=0.2)


def cloth(name: str) -> Material:
    """A dull cloth of one of the colours in `TOPS`, or denim."""
    colour = DENIM if name == "denim" else TOPS[name]
    return Material(f"cloth_{name}", (*colour, 1.0), specular=0.03, shininess=0.05)


@dataclass(frozen=True)
class Look:
    """What a person looks like, whatever they do."""

    height: float
    girth: float
    """1 for an average build."""
    skin: Material
    hair: Material
    long_hair: bool
    top: Material
    bottom: Material
    garment: str
    """"trousers", "shorts", "skirt" or "coat"."""
    short_sleeves: bool
    bag: str
    """"none", "backpack" or "handbag"."""


def draw_look(rng: np.random.Generator) -> Look:
    """A person at random; about one in eight is a child."""
    child, woman = rng.random() < 0.12, rng.random() < 0.5
    height = float(rng.normal(1.25, 0.1) if child else rng.normal(1.66 if woman else 1.78, 0.065))
    skin, hair = str(rng.choice(list(SKINS))), str(rng.choice(list(HAIRS), p=[0.38, 0.30, 0.14, 0.12, 0.06]))
    top, bottom = str(rng.choice(list(TOPS))), str(rng.choice(BOTTOMS, p=[0.36, 0.24, 0.14, 0.10, 0.10, 0.06]))
    garment = str(rng.choice(["trousers", "shorts", "skirt", "coat"],
                             p=[0.6, 0.12, 0.16, 0.12] if woman else [0.7, 0.14, 0.0, 0.16]))  # fmt: skip
    return Look(
        height=float(np.clip(height, 1.05, 1.98)),
        girth=float(np.clip(rng.normal(1.0, 0.10), 0.82, 1.3)) * (0.92 if woman else 1.0),
        skin=Material(f"skin_{skin}", (*SKINS[skin], 1.0), specular=0.05),
        hair=Material(f"hair_{hair}", (*HAIRS[hair], 1.0), specular=0.1),
        long_hair=bool(woman and rng.random() < 0.75),
        top=cloth(top),
        bottom=cloth(bottom),
        garment=garment,
        short_sleeves=bool(garment != "coat" and rng.random() < 0.4),
        bag=str(rng.choice(["none", "backpack", "handbag"], p=[0.66, 0.18, 0.16])),
    )


@dataclass(frozen=True)
class Pose:
    """Joint positions [3] in units of the person's height; pairs are left, right."""

    hip: np.ndarray
    chest: np.ndarray
    """The base of the neck."""
    head: np.ndarray
    knees: tuple[np.ndarray, np.ndarray]
    ankles: tuple[np.ndarray, np.ndarray]
    elbows: tuple[np.ndarray, np.ndarray]
    hands: tuple[np.ndarray, np.ndarray]
    toes: tuple[np.ndarray, np.ndarray]
    """Unit vectors along which the feet point."""


THIGH, SHIN, UPPER_ARM, FOREARM = 0.245, 0.235, 0.17, 0.17
HIP_HALF, SHOULDER_HALF = 0.052, 0.112


def walking_pose(phase: float) -> Pose:
    """A step: phase 0 and 1 are the same, the left leg is in front at 0.25."""
    swing = np.array([1.0, -1.0]) * np.sin(2 * np.pi * phase)
    lift = np.array([1.0, -1.0]) * np.cos(2 * np.pi * phase)
    knees, ankles, elbows, hands, toes = [], [], [], [], []
    hip = np.array([0.0, 0.0, 0.51 - 0.012 * abs(swing[0])])
    chest = np.array([0.015, 0.0, 0.825])
    for i, side in enumerate((1, -1)):
        thigh = 0.08 + 0.46 * swing[i]
        bend = 0.12 + 0.75 * max(lift[i], 0.0) * (0.6 + 0.4 * max(0.0, 1 - abs(swing[i])))
        knee = hip + [THIGH * np.sin(thigh), side * HIP_HALF, -THIGH * np.cos(thigh)]
        ankle = knee + [SHIN * np.sin(thigh - bend), 0.0, -SHIN * np.cos(thigh - bend)]
        pitch = 0.15 * swing[i] - 0.5 * max(-swing[i], 0.0)
        knees.append(knee)
        ankles.append(ankle)
        toes.append(np.array([np.cos(pitch), side * 0.12, np.sin(pitch)]))
        arm = -0.42 * swing[i]
        elbow = chest + [UPPER_ARM * np.sin(arm), side * (SHOULDER_HALF + 0.028), -0.03 - UPPER_ARM * np.cos(arm)]
        elbows.append(elbow)
        hands.append(elbow + [FOREARM * np.sin(arm + 0.35), -side * 0.008, -FOREARM * np.cos(arm + 0.35)])
    pair = lambda items: (items[0], items[1])  # noqa: E731
    return Pose(hip, chest, chest + [0.012, 0, 0.1], pair(knees), pair(ankles), pair(elbows), pair(hands), pair(toes))


def seated_pose(hip: np.ndarray, feet: tuple[np.ndarray, np.ndarray], grips: tuple[np.ndarray, np.ndarray],
                lean: float) -> Pose:  # fmt: skip
    """A rider: hips on the saddle, hands on the grips, feet on the pegs or pedals (units of the height).

    `lean` is how far the back tips forwards, radians.
    """
    chest = hip + 0.315 * np.array([np.sin(lean), 0.0, np.cos(lean)])
    head = chest + 0.1 * np.array([np.sin(lean * 0.5), 0.0, np.cos(lean * 0.5)])
    knees, elbows = [], []
    for i, side in enumerate((1, -1)):
        joint = hip + [0.0, side * HIP_HALF, 0.0]
        knees.append(_bend(joint, feet[i], THIGH, SHIN, np.array([1.0, 0.25 * side, 0.6])))
        shoulder = chest + [0.0, side * SHOULDER_HALF, -0.03]
        elbows.append(_bend(shoulder, grips[i], UPPER_ARM, FOREARM, np.array([-0.3, side, -0.8])))
    forwards = np.array([1.0, 0.0, -0.05])
    return Pose(hip, chest, head, (knees[0], knees[1]), feet, (elbows[0], elbows[1]), grips, (forwards, forwards))


def standing_pose() -> Pose:
    """Both feet on the ground, arms down."""
    pose = walking_pose(0.0)
    knees = [pose.hip + [0.01, side * HIP_HALF, -THIGH] for side in (1, -1)]
    ankles = [knee + [-0.02, side * 0.012, -SHIN] for knee, side in zip(knees, (1, -1), strict=True)]
    outwards = (np.array([1.0, 0.25, 0.0]), np.array([1.0, -0.25, 0.0]))
    return replace(pose, knees=(knees[0], knees[1]), ankles=(ankles[0], ankles[1]), toes=outwards)


def bench_pose(height: float) -> Pose:
    """Somebody of that height (metres) on a bench, hands on the thighs."""
    hip = np.array([0.0, 0.0, 0.57])
    feet = [np.array([0.43, side * 0.11, 0.06]) / height for side in (1, -1)]
    grips = [np.array([0.29, side * 0.12, 0.66]) / height for side in (1, -1)]
    return seated_pose(hip / height, (feet[0], feet[1]), (grips[0], grips[1]), -0.12)


def _bend(start: np.ndarray, end: np.ndarray, first: float, second: float, towards: np.ndarray) -> np.ndarray:
    """The joint between two limbs of given lengths from `start` to `end`, bending `towards`; reaches are clipped."""
    along = end - start
    distance = float(np.clip(np.linalg.norm(along), abs(first - second) + 1e-3, first + second - 1e-3))
    along = along / np.linalg.norm(along)
    reach = (first**2 - second**2 + distance**2) / (2 * distance)
    out = towards - along * (towards @ along)
    return start + along * reach + out / np.linalg.norm(out) * np.sqrt(max(first**2 - reach**2, 0.0))


def build_figure(builder: Builder, look: Look, pose: Pose, helmet: Material | None = None) -> None:
    """Add a dressed figure in `pose`, scaled to its height."""
    h = look.height
    _torso(builder, look, pose)
    _head(builder, look, pose, helmet)
    for i, side in enumerate((1, -1)):
        joint = pose.hip + [0.0, side * HIP_HALF, 0.0]
        _leg(builder, look, joint, pose.knees[i], pose.ankles[i])
        _foot(builder, h, pose.ankles[i], pose.toes[i])
        _arm(builder, look, pose, i, side)


def _limb(points: list[np.ndarray], radii: list[float], sides: int, bends: int) -> tuple[Soup, Soup]:
    """One smooth tube along the joints, cut at point `bends` into an upper and a lower half, so that no gap shows."""
    whole = tube(points, radii, sides, caps=(False, False))
    cut = 2 * sides * bends
    return Soup(whole.corners[:cut], whole.uv[:cut]), Soup(whole.corners[cut:], whole.uv[cut:])


def _arm(builder: Builder, look: Look, pose: Pose, i: int, side: int) -> None:
    """A sleeve, a sleeve or bare forearm, and a hand."""
    h, g = look.height, look.girth
    neck, shoulder = pose.chest + [0, side * 0.07, -0.012], pose.chest + [0, side * (SHOULDER_HALF + 0.002), -0.042]
    points = [p * h for p in (neck, shoulder, pose.elbows[i], pose.hands[i])]
    upper, lower = _limb(points, [0.020 * h, 0.031 * h * g, 0.027 * h, 0.020 * h], 5, 2)
    builder.add(look.top, upper, crease=80)
    builder.add(look.skin if look.short_sleeves else look.top, lower, crease=80)
    builder.add(look.skin, ellipsoid(pose.hands[i] * h, np.array([0.026, 0.020, 0.038]) * h, 2, 4), crease=120)


def _torso(builder: Builder, look: Look, pose: Pose) -> None:
    """Hips in the colour of the trousers, chest and shoulders in that of the top."""
    h, g = look.height, look.girth
    up = pose.chest - pose.hip
    at = lambda share: pose.hip + up * share  # noqa: E731
    sizes = [(0.0, 0.078 * g, 0.060 * g), (0.14, 0.090 * g, 0.068 * g), (0.42, 0.083 * g, 0.060 * g),
             (0.84, 0.106, 0.064 * g), (1.03, 0.040, 0.036)]  # fmt: skip
    points = np.array([at(s) for s, _, _ in sizes]) * h
    radii = [(a * h, b * h) for _, a, b in sizes]
    builder.add(look.bottom, tube(np.array([at(-0.20), points[0] / h]) * h,
                                  [(0.045 * h * g, 0.04 * h * g), radii[0]], 7, caps=(False, False)),
                crease=80)  # fmt: skip
    builder.add(look.top, tube(points, radii, 7, caps=(False, False)), crease=80)
    if look.garment in ("skirt", "coat") and up[2] > 0.28:
        cloth_ = look.top if look.garment == "coat" else look.bottom
        knee = (pose.knees[0] + pose.knees[1]) / 2
        hem = (pose.hip * 0.22 + knee * 0.78) * [1, 0, 1]
        spread = 0.075 + 0.5 * abs(pose.knees[0][0] - pose.knees[1][0])
        shape = [(0.09 * h * g, 0.072 * h * g), (0.11 * h * g, spread * h)]
        builder.add(cloth_, tube(np.array([at(0.12), hem]) * h, shape, 7, caps=(False, True)), crease=60)
    if look.bag == "backpack":
        middle = at(0.66) - [0.10, 0.0, 0.0]
        builder.add(cloth("black"), box(middle * h, np.array([0.09, 0.16, 0.22]) * h, (0.8, 0.8)))
    elif look.bag == "handbag" and up[2] > 0.28:
        builder.add(cloth("black"), box((pose.hands[1] - [0, 0, 0.09]) * h, np.array([0.15, 0.05, 0.11]) * h, (0.8, 1)))


def _head(builder: Builder, look: Look, pose: Pose, helmet: Material | None) -> None:
    """Neck, face, and hair or a helmet."""
    h = look.height
    head = pose.head * h
    builder.add(look.skin, ellipsoid(head, np.array([0.056, 0.047, 0.070]) * h, 4, 7), crease=100)
    neck = tube([pose.chest * h, head - [0, 0, 0.04 * h]], [0.03 * h, 0.028 * h], 4, caps=(False, False))
    builder.add(look.skin, neck, crease=80)
    if helmet is not None:
        shell = ellipsoid(head + [-0.004 * h, 0, 0.02 * h], np.array([0.076, 0.064, 0.066]) * h, 4, 7)
        builder.add(helmet, shell, crease=100)
        return
    cap = ellipsoid(head + [-0.014 * h, 0, 0.016 * h], np.array([0.055, 0.053, 0.064]) * h, 3, 7)
    builder.add(look.hair, cap, crease=100)
    if look.long_hair:
        back = box(head + [-0.042 * h, 0, -0.045 * h], np.array([0.035, 0.085, 0.11]) * h, (1.0, 0.9))
        builder.add(look.hair, back, crease=100)


def _leg(builder: Builder, look: Look, hip: np.ndarray, knee: np.ndarray, ankle: np.ndarray) -> None:
    h, g = look.height, look.girth
    upper, lower = _limb([hip * h, knee * h, ankle * h], [0.056 * h * g, 0.037 * h, 0.025 * h], 6, 1)
    bare = look.garment in ("shorts", "skirt")
    builder.add(look.skin if look.garment == "skirt" else look.bottom, upper, crease=80)
    builder.add(look.skin if bare else look.bottom, lower, crease=80)


def _foot(builder: Builder, h: float, ankle: np.ndarray, toes: np.ndarray) -> None:
    """A shoe along `toes` (a direction)."""
    shoe = box((0.028, 0.0, -0.012), (0.14, 0.048, 0.042), (0.72, 0.8))
    pitch = np.arctan2(toes[2], np.hypot(toes[0], toes[1]))
    tip = np.array([[np.cos(pitch), 0, -np.sin(pitch)], [0, 1, 0], [np.sin(pitch), 0, np.cos(pitch)]])
    turned = shoe.turned(rotation_z(float(np.arctan2(toes[1], toes[0]))) @ tip)
    builder.add(SHOES, Soup((turned.corners + ankle) * h, turned.uv))


def make_person(rng: np.random.Generator, pose_phase: float = 0.0, posture: str = "walking") -> Asset:
    """A pedestrian (category "pedestrian") who walks along +x, or stands or sits facing it.

    pose_phase: place in the step's cycle, 0..1. posture: "walking", "standing" or "sitting", and an attribute of the
    asset. Equal generators give the same person in every pose; the size is that of this pose. Children don't sit.
    """
    look = draw_look(rng)
    if posture == "sitting":
        look = replace(look, height=max(look.height, 1.55))
    pose = {"walking": lambda: walking_pose(pose_phase), "standing": standing_pose,
            "sitting": lambda: bench_pose(look.height)}[posture]()  # fmt: skip
    builder = Builder("person")
    build_figure(builder, look, pose)
    kind = "child" if look.height < 1.45 else "adult"
    return assemble("person", builder.parts(), "pedestrian", attributes={"variant": kind, "posture": posture})
