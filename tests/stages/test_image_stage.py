"""What a config of an image expert may ask for."""

from __future__ import annotations

import pytest

from automoe.data.transforms import AugmentConfig
from automoe.errors import ConfigError
from automoe.stages.image_stage import ImageStageConfig


def test_boxes_bear_no_sway() -> None:
    config = ImageStageConfig(size=(64, 96), augment=AugmentConfig(sway=0.5))
    assert config.train_transform("drivable").augment.sway == 0.5
    with pytest.raises(ConfigError, match=r"sway leaves boxes askew; .* not for detection"):
        config.train_transform("detection")
