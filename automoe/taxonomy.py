"""Every class list of AutoMoE, and the maps between them. No other module spells a class list.

BDD100K's names follow the official toolkit (bdd100k/configs/{det,drivable,sem_seg}.toml);
the nineteen semantic classes are Cityscapes' trainIds with 255 as ignore.
"""

from __future__ import annotations

BDD_DETECTION: tuple[str, ...] = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
"""BDD100K detection classes; the index in this tuple is the model's label, index + 1 the toolkit's id."""

BDD_DETECTION_ALIASES: dict[str, str] = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
"""Other spellings that the official name mapping accepts for an ordinary class."""

BDD_DETECTION_IGNORED: dict[str, str] = {
    "other person": "pedestrian",
    "other vehicle": "car",
    "trailer": "truck",
}
"""Categories that the official scoring turns into ignore regions of an ordinary class."""


def bdd_detection_class(category: object) -> tuple[int, bool] | None:
    """The index of a category's class and whether the category is an ignore region; None for an unknown one."""
    if not isinstance(category, str):
        return None
    name = BDD_DETECTION_IGNORED.get(category, BDD_DETECTION_ALIASES.get(category, category))
    return (BDD_DETECTION.index(name), category in BDD_DETECTION_IGNORED) if name in BDD_DETECTION else None


BDD_DETECTION_SPELLINGS: tuple[str, ...] = (*BDD_DETECTION, *BDD_DETECTION_ALIASES, *BDD_DETECTION_IGNORED)
"""Every category that `bdd_detection_class` knows."""

TRAFFIC_LIGHT = "traffic light"
ABOVE_THE_ROAD = (TRAFFIC_LIGHT, "traffic sign")
"""Classes of things that are in nobody's way, wherever their boxes are."""

LIGHT_COLORS: tuple[str, ...] = ("none", "green", "yellow", "red")
"""What a traffic light shows who looks at it (BDD100K's attribute trafficLightColor): none of it from behind."""

_LIGHT_COLOR_SPELLINGS: dict[str, str] = {"g": "green", "y": "yellow", "r": "red", "na": "none"}


def light_color(said: object) -> int:
    """The place in LIGHT_COLORS of what labels say of a traffic light; -1 where they don't say."""
    word = str(said).lower()
    word = _LIGHT_COLOR_SPELLINGS.get(word, word) if said is not None else ""
    return LIGHT_COLORS.index(word) if word in LIGHT_COLORS else -1


def det20_light_color(color: int) -> str:
    """How a det_20 label file spells a place in LIGHT_COLORS: G, Y, R or NA."""
    spelled = {name: letters.upper() for letters, name in _LIGHT_COLOR_SPELLINGS.items()}
    return spelled[LIGHT_COLORS[color]]


DRIVABLE: tuple[str, ...] = ("direct", "alternative", "background")
"""BDD100K drivable-area classes: 0 the ego's own lane, 1 other lanes that may be used, 2 the rest."""

DRIVABLE_OFFICIAL: tuple[str, ...] = ("direct", "alternative")
"""The classes over which the official toolkit averages; pixels whose truth is background are skipped."""

SEMANTIC: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Cityscapes' nineteen classes by trainId."""

ROAD_USERS: tuple[str, ...] = SEMANTIC[SEMANTIC.index("person") :]
"""Those of them that are somebody, or something that somebody drives: in the way where they stand on the road."""

IGNORE_INDEX = 255
"""The pixel value that no loss and no metric looks at."""

SEMANTIC_COLORS: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
"""Cityscapes' colours (RGB) by trainId."""

DRIVABLE_COLORS: tuple[tuple[int, int, int], ...] = ((219, 94, 86), (86, 211, 219), (0, 0, 0))
"""The official toolkit's colours (RGB) by drivable class; background is left transparent in pictures."""

DETECTION_COLORS: tuple[tuple[int, int, int], ...] = (
    (220, 20, 60),
    (255, 110, 0),
    (30, 144, 255),
    (0, 206, 209),
    (148, 80, 255),
    (0, 128, 128),
    (255, 20, 147),
    (190, 90, 40),
    (250, 200, 30),
    (120, 220, 60),
)
"""Picture colours (RGB) by detection class."""

DETECTION_TO_SEMANTIC: dict[str, str] = {name: ("person" if name == "pedestrian" else name) for name in BDD_DETECTION}
"""The semantic class of the pixels that a detection class covers."""

BDD_WEATHER: tuple[str, ...] = ("clear", "overcast", "partly cloudy", "rainy", "snowy", "foggy", "undefined")
BDD_TIME_OF_DAY: tuple[str, ...] = ("daytime", "night", "dawn/dusk", "undefined")
BDD_SCENE: tuple[str, ...] = (
    "city street",
    "highway",
    "residential",
    "parking lot",
    "gas stations",
    "tunnel",
    "undefined",
)
BDD_LIGHT_COLORS: tuple[str, ...] = ("green", "yellow", "red", "NA")

NUSCENES_DETECTION: tuple[str, ...] = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
"""nuScenes' ten detection classes, in the devkit's order; the index in this tuple is the model's label."""

NUSCENES_VEHICLES: tuple[str, ...] = (
    "car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "bicycle",
)  # fmt: skip
"""Those of them that drive."""

NUSCENES_COLORS: tuple[tuple[int, int, int], ...] = (
    (255, 158, 0),
    (255, 99, 71),
    (255, 140, 105),
    (255, 215, 120),
    (233, 150, 70),
    (80, 130, 255),
    (255, 61, 99),
    (220, 40, 160),
    (90, 200, 90),
    (160, 160, 175),
)
"""Picture colours (RGB) by nuScenes class."""

NUSCENES_CATEGORIES: dict[str, str | None] = {
    "animal": None,
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.personal_mobility": None,
    "human.pedestrian.police_officer": "pedestrian",
    "human.pedestrian.stroller": None,
    "human.pedestrian.wheelchair": None,
    "movable_object.barrier": "barrier",
    "movable_object.debris": None,
    "movable_object.pushable_pullable": None,
    "movable_object.trafficcone": "traffic_cone",
    "static_object.bicycle_rack": None,
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.emergency.ambulance": None,
    "vehicle.emergency.police": None,
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""The 23 annotated categories of nuScenes and the detection class that each is scored as; None is not scored."""

NUSCENES_BICYCLE_RACK = "static_object.bicycle_rack"
"""Bicycles and motorcycles inside such a box are neither truth nor mistakes."""

NUSCENES_ATTRIBUTES: tuple[str, ...] = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
"""The attributes of nuScenes; a box has one of its kind, or none."""

_VEHICLE_ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "vehicle.stopped")
NUSCENES_ATTRIBUTES_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), _VEHICLE_ATTRIBUTES),
    "pedestrian": ("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.with_rider", "cycle.without_rider")),
    **dict.fromkeys(("traffic_cone", "barrier"), ()),
}
"""The attributes that a class can have."""

NUSCENES_CAMERAS: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
"""The six cameras, clockwise from the front."""

NUSCENES_RANGE: dict[str, float] = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
"""Metres from the ego, seen from above, up to which a class is scored (the devkit's detection_cvpr_2019)."""

CARLA_TAGS: dict[str, tuple[str, ...]] = {
    "0.9.14": (
        "unlabeled", "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
        "static", "dynamic", "other", "water", "road line", "ground", "bridge", "rail track", "guard rail",
        "rock",
    ),
    "0.9.0": (
        "unlabeled", "building", "fence", "other", "person", "pole", "road line", "road", "sidewalk", "vegetation",
        "vehicle", "wall", "traffic sign", "sky", "ground", "bridge", "rail track", "guard rail", "traffic light",
        "static", "dynamic", "water", "terrain",
    ),
}  # fmt: skip
"""What the pixels of CARLA's semantic cameras say, by the first version that says so; the index is the tag. Names are
Cityscapes' where the meaning is. Before 0.9.14 all vehicles, two-wheelers with their riders too, are one class; rocks
came with 0.10."""

CARLA_TAG_COLORS: dict[str, tuple[int, int, int]] = {
    "unlabeled": (0, 0, 0),
    **dict(zip(SEMANTIC, SEMANTIC_COLORS, strict=True)),
    "vehicle": (0, 0, 142),
    "static": (110, 190, 160),
    "dynamic": (170, 120, 50),
    "other": (55, 90, 80),
    "water": (45, 60, 150),
    "road line": (157, 234, 50),
    "ground": (81, 0, 81),
    "bridge": (150, 100, 100),
    "rail track": (230, 150, 140),
    "guard rail": (180, 165, 180),
    "rock": (180, 130, 70),
}
"""The colours (RGB) in which CARLA's CityScapesPalette shows tags from 0.9.14 on."""

CARLA_TAG_COLORS_BEFORE: dict[str, tuple[int, int, int]] = {
    **CARLA_TAG_COLORS,
    "fence": (100, 40, 40),
    "terrain": (145, 170, 100),
}
"""The same before 0.9.14."""

CARLA_TAG_TO_SEMANTIC: dict[str, str | None] = {
    **{name: name for name in SEMANTIC},
    "vehicle": "car",
    "road line": "road",
    "ground": "terrain",
    "bridge": "building",
    "rail track": "road",
    "guard rail": "fence",
    "rock": "terrain",
    **dict.fromkeys(("unlabeled", "static", "dynamic", "other", "water")),
}
"""The Cityscapes class of a CARLA tag; None is not looked at by any loss or metric. `vehicle` is any vehicle."""

CARLA_BLUEPRINTS: dict[str, str] = {
    "vehicle.carlamotors.carlacola": "truck",
    "vehicle.carlacola.actors": "truck",
    "vehicle.carlamotors.european_hgv": "truck",
    "vehicle.carlamotors.firetruck": "truck",
    "vehicle.firetruck.actors": "truck",
    "vehicle.tesla.cybertruck": "truck",
    "vehicle.mitsubishi.fusorosa": "bus",
    "vehicle.fuso.mitsubishi": "bus",
    "vehicle.harley-davidson.low_rider": "motorcycle",
    "vehicle.kawasaki.ninja": "motorcycle",
    "vehicle.vespa.zx125": "motorcycle",
    "vehicle.yamaha.yzf": "motorcycle",
    "vehicle.bh.crossbike": "bicycle",
    "vehicle.diamondback.century": "bicycle",
    "vehicle.gazelle.omafiets": "bicycle",
}
"""The detection class of CARLA's vehicles that are no cars; vans are cars, as in BDD100K."""


def carla_detection_class(type_id: str) -> str | None:
    """The BDD100K class of an actor by its blueprint, as "vehicle.audi.tt"; None for what is no road user."""
    if type_id.startswith("walker."):
        return "pedestrian"
    return CARLA_BLUEPRINTS.get(type_id, "car") if type_id.startswith("vehicle.") else None


COARSE_DETECTION: dict[str, str] = {
    **dict.fromkeys(("truck", "bus", "train", "motorcycle", "bicycle"), "car"),
    "rider": "pedestrian",
}
"""What classes become where labels tell vehicles from people alone: then `car` is any vehicle."""

COARSE_SEMANTIC: dict[str, str] = dict.fromkeys(("rider", "truck", "bus", "train", "motorcycle", "bicycle"), "car")
"""What semantic classes become where tags know vehicles alone (CARLA before 0.9.14): then `car` is any of them, with
whoever rides it."""

ROAD_DRIVABLE: dict[str, str] = {"alternative": "direct"}
"""What drivable classes become where tags know the road alone: then `direct` is all of it."""

CARLA_COMMANDS: tuple[str, ...] = ("left", "right", "straight", "follow")
"""What a route tells a driver, CARLA's RoadOption 1 to 4."""
