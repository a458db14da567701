"""The Hungarian matcher under the name the training scripts know: matches predictions to targets at least cost.

Imported by training and evaluation code, not run: ``from hungarian_matcher import HungarianMatcher`` beside this
file, ``from training.hungarian_matcher import HungarianMatcher`` from the repository. What it does and what it
takes stands in `automoe.matching`, where it lives.

    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
    for queries, targets in matcher({"pred_logits": logits, "pred_boxes": boxes}, targets):
        ...
"""

from __future__ import annotations

from automoe.matching import HungarianMatcher, Match, MatchingError

__all__ = ["HungarianMatcher", "Match", "MatchingError"]
