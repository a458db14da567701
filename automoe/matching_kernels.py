"""The matcher's two inner loops, compiled by numba for the CPU: costs of pairs of 2D boxes, and their assignment.

Importing this room compiles both, or loads what an earlier process has compiled (beside this file, or in the user's
cache directory where that cannot be written). `automoe.matching_costs` and `automoe.matching` therefore import it
when the first batch is matched. Nothing is checked here: they see to shapes, labels and NaN.

PyTorch makes a pass over memory of every operation; here some twenty of them happen in registers, sixteen pairs at
a time. That takes loops that LLVM can turn into vector instructions: along the queries, which are contiguous, by index
(iterating over an array is several times as slow), and with minima by `_lesser`. Compiling is kept short likewise:
whole-array assignments alone would take half as long again as all the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core.extending import intrinsic

__all__ = ["assign", "image_pair_costs"]

# Constants stand here because a compiled loop is rebuilt only when its own file changes.
LEAST_SIZE = 1e-10  # half a width that keeps 0/0 away from boxes without area, and is lost in any other

# After three bids a row an auction is a price war, which shortest paths end sooner; and costs are float32, so that a
# difference below 1e-9 is no preference.
_BIDS_A_ROW = 3
_LEAST_RAISE = 1e-9

# Sums may be reordered, and no operand is NaN. Infinities are in use, so "ninf" must not be promised.
_FAST = {"nnan", "nsz", "reassoc", "contract"}
_inner = njit(fastmath=_FAST)


def _kept_on_disk(signature: str, **options: Any) -> Callable[[Callable], Callable]:
    """`njit` whose result later processes load; where nothing can be written it says so and compiles every time."""

    def compiled(function: Callable) -> Callable:
        try:
            return njit(signature, cache=True, nogil=True, **options)(function)
        except RuntimeError as error:
            if "cache" not in str(error):
                raise
            warnings.warn(
                f"The matcher's compiled code cannot be kept ({error}); every process compiles it anew. "
                "Set NUMBA_CACHE_DIR to a folder that can be written.",
                stacklevel=2,
            )
            return njit(signature, nogil=True, **options)(function)

    return compiled


@intrinsic
def _lesser(typing_context, one, other):
    """The lesser of two floats of one type. Python's `min` comes without the flags that let LLVM vectorise it."""
    del typing_context, other

    def generate(context, builder, signature, values):
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered("<", *values, flags=flags), *values, flags=flags)

    return one(one, one), generate


@_kept_on_disk(
    "void(float32[:,:,::1], float32[:,:,:,::1], float32[:,:,:,::1], int64[::1], float32[:,::1], int64[::1], "
    "float32, float32)",
    error_model="numpy",
    fastmath=_FAST,
)
def image_pair_costs(costs_LNQ, class_LBCQ, box_LBQ4, label_N, target_N4, size_B, cost_bbox, cost_giou):
    """Fill `costs_LNQ` with the cost of each target with each query of its own image, boxes as cxcywh.

    L1 and GIoU come from the same differences: on one axis, with centres c and half sizes h,
    m = max(|c1 - c2|, |h1 - h2|) gives the overlap h1 + h2 - m (negative: the gap) and the hull h1 + h2 + m.
    """
    layers, images, queries = box_LBQ4.shape[:3]
    x, y = np.empty(queries, np.float32), np.empty(queries, np.float32)
    w, h, area = np.empty(queries, np.float32), np.empty(queries, np.float32), np.empty(queries, np.float32)
    nothing, half, two, four = np.float32(0), np.float32(0.5), np.float32(2), np.float32(4)
    least = np.float32(LEAST_SIZE)
    for layer in range(layers):
        first = 0
        for image in range(images):
            last = first + size_B[image]
            for q in range(queries):
                x[q], y[q] = box_LBQ4[layer, image, q, 0], box_LBQ4[layer, image, q, 1]
                w[q], h[q] = half * box_LBQ4[layer, image, q, 2] + least, half * box_LBQ4[layer, image, q, 3] + least
                area[q] = four * w[q] * h[q]
            for n in range(first, last):
                class_Q, cost_Q = class_LBCQ[layer, image, label_N[n]], costs_LNQ[layer, n]
                own_x, own_y = target_N4[n, 0], target_N4[n, 1]
                own_w, own_h = half * target_N4[n, 2], half * target_N4[n, 3]
                own_area = four * own_w * own_h
                for q in range(queries):
                    dx, dy, dw, dh = abs(x[q] - own_x), abs(y[q] - own_y), abs(w[q] - own_w), abs(h[q] - own_h)
                    reach_x, reach_y = max(dx, dw), max(dy, dh)
                    both_w, both_h = w[q] + own_w, h[q] + own_h
                    intersection = max(both_w - reach_x, nothing) * max(both_h - reach_y, nothing)
                    union = area[q] + own_area - intersection
                    hull = (both_w + reach_x) * (both_h + reach_y)
                    # GIoU is this overlap - 1; the 1 is the same for all pairs and left out.
                    overlap = intersection / union + union / hull
                    cost_Q[q] = class_Q[q] + cost_bbox * (dx + dy + two * (dw + dh)) - cost_giou * overlap
            first = last


@njit(fastmath={"reassoc"})
def _is_finite(values):
    """Whether all are finite: 0 times anything else is NaN. The flags must not promise that there is none."""
    nothing = np.float32(0)
    for index in range(len(values)):
        nothing += values[index] * np.float32(0)
    return nothing == 0


@_inner
def _lowest(values):
    lowest = values[0]
    for index in range(len(values)):
        lowest = _lesser(lowest, values[index])  # pyright: ignore[reportCallIssue] - numba passes the first argument
    return lowest


@_inner
def _place(values, value, places):
    """The first place of `value`. `places` counts up from 0 in the type of the values, which vectorises best."""
    nowhere = places.dtype.type(len(places))
    place = nowhere
    for index in range(len(values)):
        here = places[index] if values[index] == value else nowhere
        place = _lesser(place, here)  # pyright: ignore[reportCallIssue]
    return int(place)


@_kept_on_disk("boolean(float32[:,::1], int64[::1], int64[::1], int64[::1])", fastmath=_FAST)
def assign(costs_RQ, start_P, size_P, taken_R):
    """Solve each problem of rows `start_P` and on, at most as many as columns: write the column of each row.

    Rows whose cheapest column nobody else has asked for get it. The others bid as in Bertsekas' auction (1979), one
    after the other: a row takes its best column and raises its price until it is no better than the row's second
    choice; who had it bids again. Rows that ties or price wars leave over are placed by shortest augmenting paths
    (Jonker and Volgenant, 1987) from the prices reached. All keep two things true: each row has its best column at
    the prices, and only columns that are taken have one. That proves the result optimal by linear programming
    duality, in float64.

    Returns False, and stops, at a cost that is not finite.
    """
    columns = costs_RQ.shape[1]
    places_4, places_8 = np.empty(columns, np.float32), np.empty(columns)
    price, asked, distance = np.empty(columns), np.empty(columns), np.empty(columns)
    owner, came_from = np.empty(columns, np.int64), np.empty(columns, np.int64)
    waiting, passed, distance_passed = np.empty(columns, np.int64), np.empty(columns, np.int64), np.empty(columns)
    for q in range(columns):
        places_4[q] = places_8[q] = q
    for problem in range(len(size_P)):
        rows = size_P[problem]
        costs = costs_RQ[start_P[problem] : start_P[problem] + rows]
        taken = taken_R[start_P[problem] : start_P[problem] + rows]
        for q in range(columns):
            price[q], owner[q] = 0.0, -1

        bidders = 0
        for row in range(rows):
            if not _is_finite(costs[row]):
                return False
            column = _place(costs[row], _lowest(costs[row]), places_4)
            if owner[column] < 0:
                owner[column], taken[row] = row, column
            else:
                waiting[bidders] = row
                bidders += 1

        left, bids = 0, _BIDS_A_ROW * bidders
        for bidder in range(bidders):
            row = waiting[bidder]
            while row >= 0:
                raised = -1.0
                if bids > 0:
                    bids -= 1
                    for q in range(columns):
                        asked[q] = costs[row, q] + price[q]
                    best = _lowest(asked)
                    column = _place(asked, best, places_8)
                    asked[column] = np.inf
                    raised = _lowest(asked) - best
                # A raise of nothing is a tie: the two could outbid each other by nothing for ever.
                if raised < _LEAST_RAISE:
                    waiting[left] = row  # never beyond the bidder at hand
                    left += 1
                    break
                price[column] += raised
                previous = owner[column]
                owner[column], taken[row] = row, column
                row = previous

        for index in range(left):
            start = row = waiting[index]
            for q in range(columns):
                asked[q], distance[q] = price[q], np.inf
            steps, offset = 0, 0.0
            while True:
                for q in range(columns):
                    length = costs[row, q] + asked[q] - offset
                    if length < distance[q]:
                        distance[q], came_from[q] = length, row
                nearest = _lowest(distance)
                column = _place(distance, nearest, places_8)
                if owner[column] < 0:
                    break
                passed[steps], distance_passed[steps] = column, nearest
                steps += 1
                row = owner[column]
                offset = costs[row, column] + price[column] - nearest
                asked[column] = distance[column] = np.inf  # passed: no path gets shorter through it
            for step in range(steps):
                price[passed[step]] += nearest - distance_passed[step]
            row = -1
            while row != start:  # back along the path, each row gives up its column for the next one's
                row = came_from[column]
                owner[column] = row
                taken[row], column = column, taken[row]
    return True
