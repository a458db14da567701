"""The nuScenes expert's settings: its model's and its losses'."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from automoe.errors import ConfigError
from automoe.experts.detection import DetectionConfig
from automoe.experts.pillars import BevGrid
from automoe.taxonomy import NUSCENES_CAMERAS, NUSCENES_DETECTION


@dataclass(frozen=True)
class NuscenesConfig:
    """The model and its losses; every field can be set from the JSON config.

    cameras: channels that it is used with, none for LiDAR only; lidar: false for cameras only. image: the image branch,
    always of nuScenes' classes.
    lift_heights: metres above the ego's ground at which a place of the map looks into the pictures.
    class_counts: boxes of each class in the training set, which the stage fills in; balance: how much more rarer ones
    weigh in the losses, an exponent: 0 for equally, 1 as if there were as many of each.
    """

    cameras: tuple[str, ...] = NUSCENES_CAMERAS
    lidar: bool = True
    image: DetectionConfig = field(default_factory=DetectionConfig)
    grid: BevGrid = field(default_factory=BevGrid)
    dim: int = 64
    pillar_dim: int = 32
    paint_dim: int = 16
    bev_depth: int = 1
    lift_heights: tuple[float, ...] = (0.4, 1.5)
    num_queries: int = 150
    decoder_layers: int = 2
    heads: int = 4
    points: int = 4
    dropout: float = 0.0
    cost_class: float = 2.0
    cost_bbox: float = 0.25
    cost_giou: float = 0.0
    class_weight: float = 1.0
    bbox_weight: float = 0.5
    attribute_weight: float = 0.3
    heatmap_weight: float = 1.0
    heatmap_bbox_weight: float = 0.5
    denoising_weight: float = 1.0
    denoising_groups: int = 0
    image_weight: float = 0.1
    point_weight: float = 0.5
    balance: float = 0.5
    class_counts: tuple[int, ...] = ()
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not (self.cameras or self.lidar):
            raise ConfigError("the model has neither cameras nor a LiDAR; set model.cameras or model.lidar.")
        if strange := [name for name in self.cameras if name not in NUSCENES_CAMERAS]:
            raise ConfigError(f"model.cameras has {strange[0]!r}; nuScenes has {', '.join(NUSCENES_CAMERAS)}.")
        if twice := [name for place, name in enumerate(self.cameras) if name in self.cameras[:place]]:
            raise ConfigError(f"model.cameras has {twice[0]!r} twice.")
        object.__setattr__(self, "image", replace(self.image, classes=NUSCENES_DETECTION))
        if self.num_queries < 1:
            raise ConfigError(f"model.num_queries is {self.num_queries}; give a number of at least 1.")
        for name in (one.name for one in fields(self) if one.name.endswith("_weight")):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a number of at least 0.")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"model.balance is {self.balance}; give 0 to 1.")
        if self.class_counts and len(self.class_counts) != len(NUSCENES_DETECTION):
            raise ConfigError(f"model.class_counts must be {len(NUSCENES_DETECTION)} numbers.")
        if not 1 <= self.max_detections <= 500:
            raise ConfigError(f"model.max_detections is {self.max_detections}; nuScenes allows 1 to 500 a sample.")
