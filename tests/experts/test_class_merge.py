"""Merged classes: one says what all of its group say, and a source's weights still fit."""

from __future__ import annotations

import pytest
import torch

from automoe.errors import ConfigError
from automoe.experts.class_merge import NEVER, ClassMerge
from automoe.experts.registry import build_expert
from automoe.taxonomy import COARSE_DETECTION, COARSE_SEMANTIC, SEMANTIC

CLASSES = ("a", "b", "c", "d")
MODEL = {"dim": 16, "num_queries": 6, "decoder_layers": 1, "heads": 2}


def test_nothing_to_merge_leaves_logits_alone() -> None:
    logits = torch.randn(2, 4)
    assert ClassMerge(CLASSES, {}).best(logits, 1) is logits


def test_a_group_says_the_most_or_the_sum_of_its_classes() -> None:
    merge = ClassMerge(CLASSES, {"b": "a", "d": "a"})
    logits = torch.randn(3, 4, 5, requires_grad=True)
    best, total = merge.best(logits, 1), merge.sum(logits, 1)
    torch.testing.assert_close(best[:, 0], logits[:, [0, 1, 3]].amax(dim=1))
    assert (best[:, [1, 3]] == NEVER).all()
    torch.testing.assert_close(best[:, 2], logits[:, 2])
    before, after = logits.softmax(dim=1), total.softmax(dim=1)
    torch.testing.assert_close(after[:, 0], before[:, [0, 1, 3]].sum(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after[:, 2], before[:, 2], rtol=1e-4, atol=1e-6)
    total[:, 0].sum().backward()
    assert (logits.grad[:, [0, 1, 3]] > 0).all()  # every class of the group learns


@pytest.mark.parametrize("collapse", [{"x": "a"}, {"a": "x"}, {"a": "b", "b": "c"}])
def test_groups_that_make_no_sense_are_named(collapse: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="collapse"):
        ClassMerge(CLASSES, collapse)


def test_a_detector_with_merged_classes_takes_its_sources_weights_and_says_no_other_class() -> None:
    torch.manual_seed(0)
    source = build_expert("detection", MODEL, pretrained=False).eval()
    coarse = build_expert("detection", {**MODEL, "collapse": COARSE_DETECTION}, pretrained=False).eval()
    coarse.load_state_dict(source.state_dict())
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    arguments = images, torch.eye(2, 3)[None], torch.tensor([[64, 96]])
    with torch.no_grad():
        found = coarse.predict(*arguments)[0]
    told = {coarse.classes[label] for label, score in zip(found["labels"].tolist(), found["scores"]) if score > 1e-6}
    assert told
    assert not told & set(COARSE_DETECTION)


def test_a_dense_expert_with_merged_classes_paints_no_other_class() -> None:
    torch.manual_seed(0)
    expert = build_expert("segmentation", {"dim": 16, "collapse": COARSE_SEMANTIC}, pretrained=False).eval()
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        mask = expert.predict(images, torch.eye(2, 3)[None], torch.tensor([[64, 96]]))[0]["mask"]
    assert not {SEMANTIC[value] for value in mask.unique().tolist()} & set(COARSE_SEMANTIC)
