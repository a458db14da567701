"""Backbones: strides, pretrained weights, folded batch norm, frozen stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from automoe.errors import CheckpointError, ConfigError
from automoe.experts.backbone import PACKAGED_WEIGHTS, Backbone, fold_batch_norm, packaged_lite0_state


def test_maps_have_the_strides_asked_for() -> None:
    backbone = Backbone(pretrained=False, out_strides=(4, 8, 16, 32)).eval()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(m.shape[1] for m in maps) == backbone.channels


def test_packaged_weights_know_street_scenes(fixtures: Callable[[str], Path]) -> None:
    """The package's tensors in timm's model classify real frames: ImageNet's traffic light (920) is in a top five."""
    full = timm.create_model(PACKAGED_WEIGHTS, pretrained=False).eval()
    full.load_state_dict(packaged_lite0_state())
    frames = sorted(fixtures("bdd100k_unlabelled").rglob("*.jpg"))[:6]
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in frames])
    with torch.no_grad():
        logits = full(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert (logits.topk(5).indices == 920).any(dim=1).sum() >= 2


def test_folding_keeps_what_the_network_computes() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = Backbone(norm="batch").eval()
    folded = Backbone(norm="folded").eval()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        for a, b in zip(plain(images), folded(images), strict=True):
            assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


def test_folding_also_fits_a_residual_network() -> None:
    net = timm.create_model("resnet18d", features_only=True, pretrained=False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    fold_batch_norm(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_frozen_stages_get_no_gradient_and_the_others_do() -> None:
    backbone = Backbone(pretrained=False, norm="batch", frozen_stages=2)
    sum(m.sum() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
    frozen = [name for name, p in backbone.net.named_parameters() if not p.requires_grad]
    assert any(name.startswith("conv_stem") for name in frozen)
    assert any(name.startswith("blocks.1.") for name in frozen)
    assert not any(name.startswith("blocks.2.") for name in frozen)
    assert backbone.net.conv_stem.weight.grad is None
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_mistakes_get_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no_such_net"):
        Backbone("no_such_net", pretrained=False)
    with pytest.raises(ConfigError, match="stride 3"):
        Backbone(pretrained=False, out_strides=(3,))
    with pytest.raises(ConfigError, match="norm"):
        Backbone(pretrained=False, norm="layer")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(timm.models, "create_model", timm.create_model)
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise ConnectionError("offline")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match="--no-pretrained"):
        Backbone("resnet18")


def test_freezing_reaches_a_stem_whose_feature_is_an_activation() -> None:
    """A ResNet's first feature map is the output of `act1`, which has no parameters; those before it are frozen."""
    net = Backbone("resnet18d", pretrained=False, norm="batch", frozen_stages=1, out_strides=(4, 8)).net
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1"}


def test_pretrained_weights_fit_models_whose_features_are_flattened(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm spells stages of some feature nets "stages_0", not "stages.0": the weights must be asked for as features."""
    real, made = timm.create_model, []

    def from_the_hub(name: str, pretrained: bool = False, **options: object) -> object:
        made.append(real(name, pretrained=False, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", from_the_hub)
    net = Backbone("test_convnext", norm="batch", out_strides=(4, 8)).net
    assert any(key.startswith("stages_0") for key in net.state_dict())
    assert len(made) == 3  # the whole, that up to the last map, and one with weights
    assert all(torch.equal(value, made[1].state_dict()[key]) for key, value in net.state_dict().items())
