"""Towns: a seeded street plan, its lane graph, and the traffic control on it.

A town is a perturbed grid of streets with some blocks merged, so that T-junctions, four-way junctions and bends
occur. roadgen lays out lanes and the turning lanes inside junctions and writes OpenDRIVE; what its validation
doesn't see (dead ends, lanes that nobody can enter, too tight bends, stop lines at the wrong end) is checked here.
Surfaces, buildings and everything else that is only looked at live elsewhere.

Frame: x east, y north, z up, metres; towns are flat.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import roadgen

from automoe.errors import WorldError
from automoe.world import polyline

LANE_WIDTH = 3.4
PARKING_WIDTH = 2.4
SIDEWALK_WIDTH = 3.2
CORNER_RADIUS = 7.0
CROSSWALK_NEAR, CROSSWALK_FAR = 0.6, 3.8
"""Where a crosswalk lies on its arm, metres from the arm's end at the junction."""
STOP_LINE_SETBACK = 5.0
ROADWORKS_PREFIX = "nuscenes-"
"""Towns with such names have construction sites and trailers, and no trams: what nuScenes has classes for."""
GREEN_S, YELLOW_S, ALL_RED_S = 12.0, 3.0, 2.0


@dataclass(frozen=True)
class TownStyle:
    """What a town is like; drawn from its name's seed by `draw_style`, or given."""

    columns: int = 4
    rows: int = 4
    spacing: float = 100.0
    kind: str = "city"
    """`city`, `downtown` or `residential`: what furnish.py builds along the streets."""
    merged_blocks: int = 3
    """Streets that are left out, each making two T-junctions or bends."""
    avenues: float = 0.4
    """Share of the grid's lines with two lanes each way."""
    curved: float = 0.5
    tram: bool = False
    fleet: str = "fleet"
    """Which vehicles and people it has; towns of one fleet share them."""
    roadworks: float = 0.0
    """Share of the sides of streets with parking that have a construction site; such towns have trailers, too."""


@dataclass(frozen=True)
class Lane:
    """One lane in its direction of travel. `left` and `right` are neighbours in the same direction."""

    id: str
    kind: str
    """`driving`, `parking` or `sidewalk` (both directions of walking)."""
    centre: np.ndarray
    width: float
    street: str
    junction: int | None = None
    turn: str | None = None
    """For lanes inside junctions: `straight`, `left` or `right`."""
    successors: tuple[str, ...] = ()
    predecessors: tuple[str, ...] = ()
    left: str | None = None
    right: str | None = None
    speed_limit: float = 13.4
    """Metres a second."""

    @cached_property
    def stations(self) -> np.ndarray:
        """Distance along the lane of each point of `centre`."""
        return polyline.stations(self.centre)

    @property
    def length(self) -> float:
        return float(self.stations[-1])

    def at(self, distance) -> tuple[np.ndarray, np.ndarray]:
        """Points [..., 2] and headings [...] at distances along the lane."""
        return polyline.sample(self.centre, distance, self.stations)

    def polygon(self) -> np.ndarray:
        """The lane's area as a polygon [2N, 2]."""
        return polyline.ribbon(self.centre, self.width / 2, -self.width / 2)


@dataclass(frozen=True)
class Street:
    """A road between two nodes: a straight line or one arc.

    `axis` runs from node to node; `start`..`end` (metres along it) is outside junctions.
    """

    id: str
    nodes: tuple[int, int]
    axis: np.ndarray
    heading: float
    """At the axis' first point, radians."""
    curvature: float
    """1 / radius, positive to the left."""
    start: float
    end: float
    lanes: int
    parking: bool
    sidewalk: float = SIDEWALK_WIDTH
    tram: bool = False

    @property
    def half_width(self) -> float:
        """From the axis to the kerb, metres."""
        return self.lanes * LANE_WIDTH + (PARKING_WIDTH if self.parking else 0.5)

    @property
    def open_axis(self) -> np.ndarray:
        """The axis without its junction ends."""
        return polyline.cut(self.axis, self.start, self.end)


@dataclass(frozen=True)
class Arm:
    """One street's end at a junction; `heading` points from the junction out along the street."""

    street: str
    at_end: bool
    heading: float
    point: np.ndarray
    """Where the street's axis leaves the junction."""


@dataclass(frozen=True)
class Node:
    """A junction (three or four arms), or a bend (two)."""

    id: int
    point: np.ndarray
    arms: tuple[Arm, ...]
    control: str
    """`lights`, `stop` or `none`."""


@dataclass(frozen=True)
class StopLine:
    """Across the driving lanes of one approach; `points` [2, 2] from the axis to the kerb."""

    node: int
    street: str
    lanes: tuple[str, ...]
    points: np.ndarray
    heading: float
    """Direction of travel."""


@dataclass(frozen=True)
class Crosswalk:
    """`polygon` [4, 2]; `path` [2, 2] leads from kerb to kerb."""

    node: int
    street: str
    polygon: np.ndarray
    path: np.ndarray


@dataclass(frozen=True)
class TrafficSignal:
    """The light of one approach: which lanes it holds, and when in its junction's cycle it is green."""

    id: str
    node: int
    street: str
    lanes: tuple[str, ...]
    heading: float
    """Direction of travel of the lanes that it controls."""
    group: int

    def state(self, time: float) -> str:
        """`green`, `yellow` or `red` at a time in seconds."""
        span = GREEN_S + YELLOW_S + ALL_RED_S
        phase = (time + 7.3 * self.node - span * self.group) % (2 * span)
        return "green" if phase < GREEN_S else "yellow" if phase < GREEN_S + YELLOW_S else "red"


@dataclass(frozen=True)
class Town:
    """Everything that is fixed about a town's roads. Built by `build_town`."""

    name: str
    seed: int
    style: TownStyle
    streets: dict[str, Street]
    nodes: tuple[Node, ...]
    lanes: dict[str, Lane]
    stop_lines: tuple[StopLine, ...]
    crosswalks: tuple[Crosswalk, ...]
    signals: tuple[TrafficSignal, ...]
    opendrive: str = field(repr=False)

    def driving_lanes(self) -> list[Lane]:
        """Lanes for vehicles outside junctions, in a fixed order."""
        return [lane for lane in self.lanes.values() if lane.kind == "driving" and lane.junction is None]


def town_seed(name: str) -> int:
    """The seed that a town's name stands for."""
    return zlib.crc32(name.encode())


def draw_style(name: str) -> TownStyle:
    """The style that a town's name stands for."""
    rng = np.random.default_rng([town_seed(name), 1])
    kind = ("city", "downtown", "residential")[town_seed(name) % 3]
    return TownStyle(
        columns=4,
        rows=int(rng.integers(3, 5)),
        roadworks=0.4 if name.startswith(ROADWORKS_PREFIX) else 0.0,
        spacing=float(rng.uniform(105, 135)),
        kind=kind,
        merged_blocks=int(rng.integers(2, 5)),
        avenues=float(rng.uniform(0.3, 0.6)) * (0.5 if kind == "residential" else 1.0),
        curved=float(rng.uniform(0.35, 0.7)),
        tram=bool(rng.random() < 0.6) and not name.startswith(ROADWORKS_PREFIX),
        # Towns whose names differ only in their number share two fleets: train and validation towns never do.
        fleet=f"{name.rsplit('-', 1)[0]}/{town_seed(name) % 2}",
    )


def build_town(name: str, style: TownStyle | None = None) -> Town:
    """The town of that name: the same name and style always give the same town.

    Street plans that break one of this module's own checks are drawn again; WorldError when ten do.
    """
    style = style or draw_style(name)
    problems: list[str] = []
    for attempt in range(10):
        rng = np.random.default_rng([town_seed(name), 2, attempt])
        streets, node_points = _plan_streets(style, rng)
        nodes = _make_nodes(streets, node_points, rng)
        problems = _short_streets(streets)
        if not problems:
            town = _lay_out(name, style, streets, nodes)
            problems = check_town(town)
            if not problems:
                return town
    raise WorldError(f"town {name!r} is not sound: {'; '.join(problems[:3])}; choose another name or style")


def _lay_out(name: str, style: TownStyle, streets: dict[str, Street], nodes: tuple[Node, ...]) -> Town:
    lanes, opendrive = _lay_lanes(name, streets, nodes)
    stop_lines = _stop_lines(streets, nodes, lanes)
    signals = _signals(stop_lines, nodes)
    crosswalks = _crosswalks(streets, nodes)
    return Town(name, town_seed(name), style, streets, nodes, lanes, stop_lines, crosswalks, signals, opendrive)


# ---------------------------------------------------------------- street plan


def _plan_streets(style: TownStyle, rng: np.random.Generator):
    """Streets and node positions: the perturbed grid, less the streets that are left out."""
    columns, rows = style.columns, style.rows
    points = {}
    for row in range(rows):
        for column in range(columns):
            jitter = rng.uniform(-0.08, 0.08, 2) * style.spacing
            points[row * columns + column] = np.array([column, row]) * style.spacing + jitter
    edges = [(r * columns + c, r * columns + c + 1, "h", r) for r in range(rows) for c in range(columns - 1)]
    edges += [(r * columns + c, (r + 1) * columns + c, "v", c) for r in range(rows - 1) for c in range(columns)]
    edges = _leave_out(edges, style.merged_blocks, rng)
    wide = {("h", r): rng.random() < style.avenues for r in range(rows)}
    wide |= {("v", c): rng.random() < style.avenues for c in range(columns)}
    wide[("h", rows // 2)] = True
    parked = {line: rng.random() < 0.7 for line in wide}
    tram_line = ("h", rows // 2) if style.tram else None
    lines = _same_line_round_bends([(edge[2], edge[3]) for edge in edges], edges, wide)
    streets = {}
    for index, (a, b, axis, rank) in enumerate(edges):
        line = lines[index]
        tram = (axis, rank) == tram_line
        curve = 0.0 if tram or rng.random() > style.curved else float(rng.choice([-1, 1]) * rng.uniform(0.03, 0.075))
        streets[f"s{index}"] = Street(
            f"s{index}", (a, b), *_arc(points[a], points[b], curve), 0.0, 0.0, 2 if wide[line] else 1, parked[line],
            SIDEWALK_WIDTH, tram,
        )  # fmt: skip
    return streets, points


def _leave_out(edges: list[tuple], count: int, rng: np.random.Generator) -> list[tuple]:
    """The edges without `count` of them, keeping the grid connected and every node with two streets or more."""
    kept = list(edges)
    for index in rng.permutation(len(edges)):
        if count == 0:
            break
        trial = [edge for edge in kept if edge != edges[index]]
        degree: dict[int, int] = {}
        for a, b, *_ in trial:
            degree[a], degree[b] = degree.get(a, 0) + 1, degree.get(b, 0) + 1
        straight_pair = any(
            degree[node] == 2 and len({e[2] for e in trial if node in e[:2]}) == 1 for node in edges[index][:2]
        )
        if min(degree.values()) >= 2 and not straight_pair and _connected(trial):
            kept, count = trial, count - 1
    return kept


def _connected(edges: list[tuple]) -> bool:
    nodes = {node for edge in edges for node in edge[:2]}
    seen, border = set(), [next(iter(nodes))]
    while border:
        node = border.pop()
        if node not in seen:
            seen.add(node)
            border += [b if a == node else a for a, b, *_ in edges if node in (a, b)]
    return seen == nodes


def _same_line_round_bends(lines: list, edges: list[tuple], wide: dict) -> list:
    """The grid line whose cross-section each edge takes: streets that meet in a bend share theirs."""
    lines = list(lines)
    for node in sorted({n for edge in edges for n in edge[:2]}):
        ends = [i for i, edge in enumerate(edges) if node in edge[:2]]
        if len(ends) == 2:
            first, second = lines[ends[0]], lines[ends[1]]
            keep = first if node % 2 else second
            lines = [keep if line in (first, second) else line for line in lines]
    return lines


def _arc(a: np.ndarray, b: np.ndarray, sagitta: float) -> tuple[np.ndarray, float, float]:
    """An arc from a to b sampled every 1 m, its first heading and its curvature.

    sagitta as a share of the chord; positive bulges to the right, so that the arc turns left.
    """
    chord = float(np.hypot(*(b - a)))
    bearing = math.atan2(b[1] - a[1], b[0] - a[0])
    if abs(sagitta) < 1e-6:
        return polyline.densify(np.stack([a, b]), 1.0), bearing, 0.0
    rise = abs(sagitta) * chord
    radius = (chord**2 / 4 + rise**2) / (2 * rise)
    half = math.asin(chord / 2 / radius)
    angles = np.linspace(-half, half, max(2, int(np.ceil(2 * half * radius)) + 1))
    along = radius * np.sin(angles) + chord / 2
    across = -np.sign(sagitta) * radius * (np.cos(angles) - math.cos(half))
    unit = (b - a) / chord
    axis = a + along[:, None] * unit + across[:, None] * np.array([-unit[1], unit[0]])
    side = float(np.sign(sagitta))
    return axis, bearing - side * half, side / radius


def _make_nodes(streets: dict[str, Street], points: dict, rng: np.random.Generator) -> tuple[Node, ...]:
    """Nodes with their arms; also trims every street (in place in the dict) to where its junctions begin."""
    ends: dict[int, list[tuple[str, bool]]] = {}
    for street in streets.values():
        ends.setdefault(street.nodes[0], []).append((street.id, False))
        ends.setdefault(street.nodes[1], []).append((street.id, True))
    for arms in ends.values():
        for street_id, at_end in arms:
            street = streets[street_id]
            others = max(streets[other].half_width for other, _ in arms if other != street_id)
            setback = others + CORNER_RADIUS + (4.0 if len(arms) == 2 else 0.5)
            total = polyline.length(street.axis)
            change = {"end": total - setback} if at_end else {"start": setback}
            streets[street_id] = replace(street, **change)
    nodes = []
    for node in sorted(ends):
        arms = tuple(_arm(streets[street_id], at_end) for street_id, at_end in ends[node])
        lanes = max(streets[arm.street].lanes for arm in arms)
        lit = len(arms) > 2 and (lanes > 1 or len(arms) == 4 or rng.random() < 0.5)
        control = "lights" if lit else "stop" if len(arms) > 2 else "none"
        nodes.append(Node(node, points[node], arms, control))
    return tuple(nodes)


def _arm(street: Street, at_end: bool) -> Arm:
    point, heading = polyline.sample(street.axis, street.end if at_end else street.start)
    return Arm(street.id, at_end, float(polyline.wrap_angle(heading + (math.pi if at_end else 0.0))), point)


# ---------------------------------------------------------------- lanes, through roadgen


def _lay_lanes(name: str, streets: dict[str, Street], nodes: tuple[Node, ...]):
    """The lane graph and the OpenDRIVE text."""
    plan = roadgen.Map(name=name, sampling=1.0)
    roads = {street.id: _add_road(plan, street) for street in streets.values()}
    turns: dict[tuple[str, str], tuple[int, str]] = {}
    for node in nodes:
        junction = plan.add_junction(f"j{node.id}")
        for entry, leave, turn in _movements(node, streets):
            plan.connect_lanes(roads[entry[0]].lane(entry[1]), roads[leave[0]].lane(leave[1]), junction)
            turns[f"lane/{entry[0]}/{entry[1]}", f"lane/{leave[0]}/{leave[1]}"] = (node.id, turn)
        _control_in_plan(plan, node, streets, roads)
    plan.validate()
    return _lane_graph(plan, streets, turns), plan.to_opendrive_xml()


def _per_side(street: Street) -> int:
    """Lanes of one direction in roadgen's list: driving, parking (or gutter), sidewalk."""
    return street.lanes + 2


def _add_road(plan: roadgen.Map, street: Street):
    def side(direction: str) -> list:
        lanes = [roadgen.Lane(LANE_WIDTH, direction) for _ in range(street.lanes)]
        strip = ("parking", PARKING_WIDTH) if street.parking else ("shoulder", 0.5)
        lanes.append(roadgen.Lane(strip[1], direction, type_=strip[0]))
        lanes.append(roadgen.Lane(street.sidewalk, direction, type_="sidewalk"))
        return lanes

    start, _ = polyline.sample(street.axis, street.start)
    heading = street.heading + street.curvature * street.start
    alignment = roadgen.Alignment((float(start[0]), float(start[1]), 0.0), float(heading))
    if street.curvature:
        alignment.arc(street.end - street.start, street.curvature)
    else:
        alignment.line(street.end - street.start)
    return plan.add_road(side("forward") + side("backward"), alignment=alignment, name=street.id, speed_limit_kph=50.0)


def _lane_index(street: Street, toward_end: bool, rank: int) -> int:
    """roadgen's index of the driving lane `rank` (0 at the axis) that travels toward the street's end or start."""
    return rank + (0 if toward_end else _per_side(street))


def _movements(node: Node, streets: dict[str, Street]):
    """((street, lane index) in, (street, lane index) out, turn) for every movement through the node."""
    found, served = [], set()

    def connect(arm_in: Arm, rank_in: int, arm_out: Arm, rank_out: int, turn: str) -> None:
        entry = (arm_in.street, _lane_index(streets[arm_in.street], arm_in.at_end, rank_in))
        leave = (arm_out.street, _lane_index(streets[arm_out.street], not arm_out.at_end, rank_out))
        if (entry, leave) not in [(m[0], m[1]) for m in found]:
            found.append((entry, leave, turn))
        served.add(leave)

    for arm_in in node.arms:
        count = streets[arm_in.street].lanes
        ways = {turn: arm for arm, turn in _turns(node, arm_in)}
        for turn, arm_out in ways.items():
            count_out = streets[arm_out.street].lanes
            if turn == "straight" or len(node.arms) == 2:
                for rank in range(count):
                    connect(arm_in, rank, arm_out, min(rank, count_out - 1), turn)
            elif turn == "left":
                connect(arm_in, 0, arm_out, 0, turn)
            else:
                connect(arm_in, count - 1, arm_out, count_out - 1, turn)
    for arm_out in node.arms:
        for rank in range(streets[arm_out.street].lanes):
            leave = (arm_out.street, _lane_index(streets[arm_out.street], not arm_out.at_end, rank))
            if leave not in served:
                arm_in, turn = _best_feeder(node, arm_out)
                connect(arm_in, min(rank, streets[arm_in.street].lanes - 1), arm_out, rank, turn)
    return found


def _turns(node: Node, arm_in: Arm) -> list[tuple[Arm, str]]:
    """The other arms with the turn that leads to each; at most one is `straight`."""
    travel = arm_in.heading + math.pi
    others = [(arm, float(polyline.wrap_angle(arm.heading - travel))) for arm in node.arms if arm is not arm_in]
    named = []
    straightest = min(others, key=lambda other: abs(other[1]))
    for arm, angle in others:
        straight = arm is straightest[0] and abs(angle) < math.radians(50)
        named.append((arm, "straight" if straight else "left" if angle > 0 else "right"))
    return named


def _best_feeder(node: Node, arm_out: Arm) -> tuple[Arm, str]:
    """The arm whose traffic should also serve a lane that no movement leads to: straight ahead if there is one."""
    ways = [(arm, turn) for arm in node.arms if arm is not arm_out for out, turn in _turns(node, arm) if out is arm_out]
    return min(ways, key=lambda way: ("straight", "right", "left").index(way[1]))


def _control_in_plan(plan: roadgen.Map, node: Node, streets: dict[str, Street], roads: dict) -> None:
    """Stop lines, lights and crosswalks for the OpenDRIVE file. `end` is the road's end, not the travel's."""
    if node.control == "none":
        return
    for arm in node.arms:
        street = streets[arm.street]
        end = "end" if arm.at_end else "start"
        lanes = [roads[street.id].lane(_lane_index(street, arm.at_end, rank)) for rank in range(street.lanes)]
        lines = [plan.add_stop_line(lane, end=end, setback=STOP_LINE_SETBACK) for lane in lanes]
        if node.control == "lights":
            for lane, line in zip(lanes, lines, strict=True):
                light = plan.add_traffic_light(lane, end=end, setback=STOP_LINE_SETBACK)
                plan.add_traffic_light_rule([light], [lane], line)
        middle = (CROSSWALK_NEAR + CROSSWALK_FAR) / 2 / (street.end - street.start)
        plan.add_crosswalk(roads[street.id], 1 - middle if arm.at_end else middle, CROSSWALK_FAR - CROSSWALK_NEAR)


def _lane_graph(plan: roadgen.Map, streets: dict[str, Street], turns: dict) -> dict[str, Lane]:
    """Lanes with successors, predecessors and neighbours. Lanes of kind `shoulder` are left out."""
    lanes: dict[str, Lane] = {}
    for lane_id in plan.lane_ids():
        centre = np.array(plan.lane_centerline(lane_id))[:, :2]
        _, road, index = lane_id.rsplit("/", 2)[-3:] if lane_id.count("/") == 2 else ("lane", None, "0")
        if road in streets:
            lane = _street_lane(lane_id, streets[road], int(index), centre)
            if lane is not None:
                lanes[lane_id] = lane
    successors: dict[str, list[str]] = {lane_id: [] for lane_id in lanes}
    for entry in list(lanes):
        for inner in plan.successors(entry) if lanes[entry].kind == "driving" else []:
            for leave in plan.successors(inner):
                if (entry, leave) in turns:
                    node, turn = turns[entry, leave]
                    centre = np.array(plan.lane_centerline(inner))[:, :2]
                    centre = polyline.densify(centre, 1.0)
                    lanes[inner] = Lane(inner, "driving", centre, LANE_WIDTH, "", node, turn, (leave,), (entry,))
                    successors[entry].append(inner)
    predecessors: dict[str, list[str]] = {}
    for inner in [lane for lane in lanes.values() if lane.junction is not None]:
        predecessors.setdefault(inner.successors[0], []).append(inner.id)
    for lane_id, following in successors.items():
        lanes[lane_id] = replace(
            lanes[lane_id], successors=tuple(following), predecessors=tuple(predecessors.get(lane_id, ()))
        )
    return lanes


def _street_lane(lane_id: str, street: Street, index: int, centre: np.ndarray) -> Lane | None:
    side, rank = divmod(index, _per_side(street))
    centre = polyline.densify(centre, 1.0)
    if rank == street.lanes:
        return Lane(lane_id, "parking", centre, PARKING_WIDTH, street.id) if street.parking else None
    if rank > street.lanes:
        return Lane(lane_id, "sidewalk", centre, street.sidewalk, street.id)

    def neighbour(other: int) -> str | None:
        return f"lane/{street.id}/{side * _per_side(street) + other}" if 0 <= other < street.lanes else None

    return Lane(lane_id, "driving", centre, LANE_WIDTH, street.id, left=neighbour(rank - 1), right=neighbour(rank + 1))


# ---------------------------------------------------------------- control


def _frame_of(arm: Arm, street: Street, distance: float) -> tuple[np.ndarray, float]:
    """Point on the axis and heading of travel *toward* the junction, `distance` metres before the arm's end."""
    along = street.end - distance if arm.at_end else street.start + distance
    point, heading = polyline.sample(street.axis, along)
    return point, float(polyline.wrap_angle(heading + (0.0 if arm.at_end else math.pi)))


def _stop_lines(streets: dict[str, Street], nodes: tuple[Node, ...], lanes: dict[str, Lane]) -> tuple[StopLine, ...]:
    lines = []
    for node in nodes:
        for arm in node.arms if node.control != "none" else ():
            if node.control == "stop" and not _must_stop(node, arm):
                continue
            street = streets[arm.street]
            point, heading = _frame_of(arm, street, STOP_LINE_SETBACK)
            right = np.array([math.sin(heading), -math.cos(heading)])
            ends = np.stack([point + right * 0.15, point + right * (street.lanes * LANE_WIDTH)])
            ids = [f"lane/{street.id}/{_lane_index(street, arm.at_end, rank)}" for rank in range(street.lanes)]
            lines.append(StopLine(node.id, street.id, tuple(ids), ends, heading))
    return tuple(lines)


def _must_stop(node: Node, arm: Arm) -> bool:
    """At a T-junction without lights only the stem stops."""
    return all(turn != "straight" for _, turn in _turns(node, arm))


def _crosswalks(streets: dict[str, Street], nodes: tuple[Node, ...]) -> tuple[Crosswalk, ...]:
    found = []
    for node in nodes:
        for arm in node.arms if node.control != "none" else ():
            street = streets[arm.street]
            near, heading = _frame_of(arm, street, CROSSWALK_NEAR)
            far, _ = _frame_of(arm, street, CROSSWALK_FAR)
            side = np.array([-math.sin(heading), math.cos(heading)]) * street.half_width
            polygon = np.stack([far + side, far - side, near - side, near + side])
            middle = (near + far) / 2
            found.append(Crosswalk(node.id, street.id, polygon, np.stack([middle + side, middle - side])))
    return tuple(found)


def _signals(stop_lines: tuple[StopLine, ...], nodes: tuple[Node, ...]) -> tuple[TrafficSignal, ...]:
    """One signal for each approach; opposite approaches share a phase group."""
    signals = []
    for line in stop_lines:
        node = nodes[[n.id for n in nodes].index(line.node)]
        if node.control == "lights":
            # Directions of the axis, not of travel: north and south are one group.
            group = int(abs(math.sin(line.heading)) > math.sqrt(0.5))
            signals.append(
                TrafficSignal(
                    f"signal/{line.node}/{line.street}", line.node, line.street, line.lanes, line.heading, group
                )
            )
    return tuple(signals)


# ---------------------------------------------------------------- own checks


def check_town(town: Town) -> list[str]:
    """What is wrong with a town's roads, as sentences; empty for a sound town."""
    problems = []
    for lane in town.lanes.values():
        if lane.kind != "driving":
            continue
        if not lane.successors:
            problems.append(f"lane {lane.id} is a dead end")
        if not lane.predecessors:
            problems.append(f"nothing leads into lane {lane.id}")
        for other in lane.successors:
            gap = float(np.hypot(*(town.lanes[other].centre[0] - lane.centre[-1])))
            if gap > 0.5:
                problems.append(f"lane {lane.id} ends {gap:.1f} m from its successor {other}")
        if _tightest_radius(lane.centre) < 3.0:
            problems.append(f"lane {lane.id} bends tighter than 3 m")
    for line in town.stop_lines:
        for lane_id in line.lanes:
            lane = town.lanes[lane_id]
            along, _ = polyline.project(lane.centre, line.points.mean(0))
            if not lane.length - STOP_LINE_SETBACK - 2.0 < along < lane.length:
                problems.append(f"the stop line of lane {lane_id} is not at its travel end")
    return problems + _short_streets(town.streets)


def _short_streets(streets: dict[str, Street]) -> list[str]:
    lengths = {street.id: street.end - street.start for street in streets.values()}
    return [f"street {street} is only {length:.0f} m long" for street, length in lengths.items() if length < 25.0]


def _tightest_radius(line: np.ndarray) -> float:
    """Smallest radius of curvature over 3 m stretches."""
    _, heading = polyline.sample(line, np.arange(0.0, polyline.length(line), 1.5))
    turn = np.abs(polyline.wrap_angle(np.diff(heading)))
    return float(1.5 / max(turn.max(initial=0.0), 1e-9))
