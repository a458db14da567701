"""The order of training is a pure function of (seed, epoch); every sample is evaluated exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automoe.engine.sampler import EvaluationSampler, ResumableSampler
from automoe.errors import ConfigError

sizes = st.integers(1, 60)
small = st.integers(1, 4)


def by_rank(length: int, batch: int, world: int, accumulate: int = 1, **more) -> list[list[list[tuple[int, int]]]]:
    samplers = [
        ResumableSampler(length, batch, seed=3, rank=rank, world_size=world, accumulate=accumulate, **more)
        for rank in range(world)
    ]
    return [list(sampler) for sampler in samplers]


@settings(max_examples=60, deadline=None)
@given(length=sizes, batch=small, world=small, accumulate=small)
def test_ranks_share_an_epoch_without_overlap(length, batch, world, accumulate):
    ranks = by_rank(length, batch, world, accumulate)
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) % accumulate == 0
    assert all(len(keys) == batch for batches in ranks for keys in batches)
    seen = [index for batches in ranks for keys in batches for _, index in keys]
    global_batch = batch * world * accumulate
    if length >= global_batch:
        assert len(set(seen)) == len(seen) == length // global_batch * global_batch
    else:
        counts = np.bincount(seen, minlength=length)
        assert len(seen) == global_batch
        assert counts.max() - counts.min() <= 1


@settings(max_examples=60, deadline=None)
@given(length=sizes, batch=small, world=small, start=st.integers(0, 40))
def test_starting_late_gives_the_rest_of_the_same_order(length, batch, world, start):
    whole = by_rank(length, batch, world, epochs=3)
    rest = by_rank(length, batch, world, epochs=3, start_batch=start)
    assert rest == [batches[start:] for batches in whole]


@pytest.mark.parametrize(("world", "batch", "accumulate"), [(2, 4, 1), (1, 4, 2), (4, 1, 2), (1, 8, 1)])
def test_a_step_sees_the_same_samples_however_it_is_shared(world, batch, accumulate):
    whole = [set(keys) for keys in by_rank(50, 8, 1, epochs=2)[0]]
    ranks = by_rank(50, batch, world, accumulate, epochs=2)
    steps = [
        {key for batches in ranks for keys in batches[first : first + accumulate] for key in keys}
        for first in range(0, len(ranks[0]), accumulate)
    ]
    assert steps == whole


def test_epochs_and_seeds_differ_and_repeat():
    sampler = ResumableSampler(100, 4, seed=0)
    first, second = sampler.epoch_order(0).copy(), sampler.epoch_order(1).copy()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, sampler.epoch_order(0))
    assert not np.array_equal(first, ResumableSampler(100, 4, seed=1).epoch_order(0))
    assert [epoch for epoch, _ in sampler.batch(25)] == [1] * 4


def test_weights_draw_in_proportion():
    weights = np.array([0.0, 1.0, 3.0] * 1000)
    order = ResumableSampler(3000, 1, seed=0, weights=weights).epoch_order(0)
    shares = np.bincount(order % 3, minlength=3) / len(order)
    assert shares[0] == 0
    assert shares[2] == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        ResumableSampler(2, 1, seed=0, weights=weights)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        ResumableSampler(0, 1, seed=0)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 60), batch=small, world=small)
def test_evaluation_takes_every_sample_once(length, batch, world):
    samplers = [EvaluationSampler(length, batch, rank=rank, world_size=world) for rank in range(world)]
    seen = [key for sampler in samplers for keys in sampler for key in keys]
    assert sorted(seen) == [(0, index) for index in range(length)]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
