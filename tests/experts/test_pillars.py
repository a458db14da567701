"""Points to a map seen from above: which cell a point lands in, and what the map doesn't depend on."""

from __future__ import annotations

import pytest
import torch

from automoe.errors import ConfigError
from automoe.experts.pillars import POINT_FEATURES, BevBackbone, BevGrid, PillarEncoder

GRID = BevGrid(reach=8.0, cell=1.0, low=-2.0, high=4.0)


@pytest.fixture
def encoder() -> PillarEncoder:
    torch.manual_seed(0)
    return PillarEncoder(GRID, 16)


def cloud(*points: tuple[float, ...]) -> torch.Tensor:
    """One sample of points; intensity 60 and no lag where only the place is given."""
    return torch.tensor([[*point, 60.0, 0.0][:5] for point in points])[None]


def count(points: torch.Tensor) -> torch.Tensor:
    return torch.full((len(points),), points.shape[1])


def test_a_point_lands_in_its_cell(encoder: PillarEncoder) -> None:
    """Rows go from behind to ahead, columns from right to left: by hand, by `centres` and by `place`."""
    for x, y, row, column in ((-7.9, -7.9, 0, 0), (7.9, -7.9, 15, 0), (-7.9, 7.9, 0, 15), (3.5, -1.5, 11, 6)):
        out = encoder(cloud((x, y, 0.5)), torch.tensor([1]))
        assert out.shape == (1, 16, 16, 16)
        assert out[0].amax(dim=0).nonzero().tolist() == [[row, column]]
        place = torch.tensor([x, y])
        centre = GRID.centres(16, 16, torch.device("cpu"))[row, column]
        assert ((centre - place).abs() <= 0.5 + 1e-5).all()
        across, along = (GRID.place(place) * 16).floor().tolist()  # grid_sample's order
        assert (along, across) == (row, column)


@pytest.mark.parametrize("side", [16, 8, 4])
def test_centres_of_any_stride_are_where_grid_sample_finds_their_cells(side: int) -> None:
    values = torch.arange(float(side * side)).view(1, 1, side, side)
    centres = GRID.centres(side, side, torch.device("cpu"))
    places = GRID.place(centres)[None] * 2 - 1
    found = torch.nn.functional.grid_sample(values, places, align_corners=False)
    torch.testing.assert_close(found, values, atol=1e-3, rtol=0)
    # Ahead is down the rows, left is along the columns.
    assert centres[-1, 0, 0] == 8 - 8 / side
    assert centres[0, -1, 1] == 8 - 8 / side


def test_what_holds() -> None:
    xy = torch.tensor([[0.0, 0.0], [7.99, -7.99], [8.0, 0.0], [0.0, -8.01], [float("nan"), 0.0]])
    assert GRID.holds(xy).tolist() == [True, True, False, False, False]


def test_a_pillar_is_the_greatest_of_its_points(encoder: PillarEncoder) -> None:
    """What the points say alone, given what they share: each feature of a pillar comes from one of its points."""
    points = cloud((2.2, 3.1, 0.1), (2.7, 3.9, 1.2), (2.5, 3.3, -1.0))
    said: list[torch.Tensor] = []
    handle = encoder.points.register_forward_hook(lambda _module, _given, out: said.append(out))
    out = encoder(points, count(points))
    handle.remove()
    assert said[0].shape == (3, 16)
    torch.testing.assert_close(out[0, :, 10, 11], said[0].amax(dim=0))
    assert len(said[0].argmax(dim=0).unique()) > 1


def test_the_features_of_a_point_by_hand(encoder: PillarEncoder) -> None:
    points = torch.tensor([[[2.25, 3.0, 0.6, 128.0, 0.0], [2.75, 3.5, 1.2, 0.0, 0.1]]])
    given: list[torch.Tensor] = []
    encoder.points.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    encoder(points, torch.tensor([2]))
    assert given[0].shape == (2, POINT_FEATURES)
    many = torch.log1p(torch.tensor(2.0)) / 4
    expected = torch.tensor(
        [
            [2.25 / 8, 3.0 / 8, 0.2, 0.7, 0.0, -0.25, -0.5, -0.25, -0.25, -0.3, many, 1.0],
            [2.75 / 8, 3.5 / 8, 0.4, -0.3, 1.0, 0.25, 0.0, 0.25, 0.25, 0.3, many, 0.0],
        ]
    )
    torch.testing.assert_close(given[0], expected, atol=1e-5, rtol=0)


def test_the_order_of_points_does_not_matter(encoder: PillarEncoder) -> None:
    points = torch.rand(1, 200, 5, generator=torch.Generator().manual_seed(1)) * 4 - 2
    shuffled = points[:, torch.randperm(200, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(encoder(points, count(points)), encoder(shuffled, count(points)))
    torch.testing.assert_close(encoder(points, count(points)), encoder(points, count(points)), atol=0, rtol=0)


def test_padding_and_points_beyond_the_map_are_nothing(encoder: PillarEncoder) -> None:
    inside = cloud((1.5, 1.5, 0.0), (-3.0, 2.0, 1.0))
    alone = encoder(inside, torch.tensor([2]))
    beyond = cloud((8.5, 0.0, 0.0), (0.0, -9.0, 0.0), (1.5, 1.5, -2.5), (1.5, 1.5, 4.5))
    together = torch.cat([inside, beyond], dim=1)
    torch.testing.assert_close(encoder(together, torch.tensor([6])), alone)
    padding = torch.cat([inside, cloud((1.4, 1.4, 0.3), (float("nan"),) * 3)], dim=1)
    torch.testing.assert_close(encoder(padding, torch.tensor([2])), alone)


def test_samples_do_not_mix_and_an_empty_one_is_zero(encoder: PillarEncoder) -> None:
    first, second = cloud((1.5, 1.5, 0.0), (2.5, 1.5, 1.0)), cloud((1.5, 1.5, 2.0), (0.0, 0.0, 0.0))
    both = encoder(torch.cat([first, second, second]), torch.tensor([2, 1, 0]))
    torch.testing.assert_close(both[0], encoder(first, torch.tensor([2]))[0])
    torch.testing.assert_close(both[1], encoder(second, torch.tensor([1]))[0])
    assert (both[2] == 0).all()
    assert (both[1] > 0).any()


@pytest.mark.parametrize("points_there", [0, 40])
def test_every_weight_has_a_gradient(encoder: PillarEncoder, points_there: int) -> None:
    """Also where no sample of the batch has a point: DDP waits for the gradients of all parameters."""
    points = torch.rand(2, 50, 5, generator=torch.Generator().manual_seed(0)) * 6 - 1
    encoder(points, torch.tensor([points_there, points_there])).square().sum().backward()
    for weight in encoder.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert bool(weight.grad.any()) == (points_there > 0)


def test_what_is_painted_on_points_is_seen_where_they_are() -> None:
    torch.manual_seed(0)
    encoder = PillarEncoder(GRID, 16, extra=2)
    points = cloud((1.5, 1.5, 0.0), (1.2, 1.2, 0.0), (-3.5, 2.5, 1.0), (20.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    paint = torch.zeros(1, 5, 2, requires_grad=True)
    plain = encoder(points, torch.tensor([4]), paint)
    colour = torch.zeros(1, 5, 2)
    colour[0, 2] = torch.tensor([3.0, -2.0])
    changed = (encoder(points, torch.tensor([4]), colour) - plain).abs().amax(dim=(0, 1))
    assert changed.nonzero().tolist() == [[4, 10]]
    plain.square().sum().backward()
    assert paint.grad is not None
    # The last two are beyond the map and padding.
    assert paint.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, True, True, False, False]


def test_works_in_bfloat16(encoder: PillarEncoder) -> None:
    points = torch.rand(1, 100, 5, generator=torch.Generator().manual_seed(0)) * 6 - 1
    exact = encoder(points, count(points))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(points, count(points))
    rough.float().sum().backward()
    assert (rough.float() - exact).abs().max() < 0.1
    assert (exact > 0.5).any()


def test_the_backbone_keeps_places() -> None:
    """A change in one corner is strongest there: the map isn't turned or mirrored on the way."""
    torch.manual_seed(0)
    backbone = BevBackbone(4, 16, 1).eval()
    pillars = torch.zeros(1, 4, 64, 64)
    plain = backbone(pillars)
    assert plain.shape == (1, 16, 32, 32)
    pillars[:, :, 50:54, 8:12] = 3.0
    change = (backbone(pillars) - plain).abs().sum(dim=1)[0]
    row, column = divmod(int(change.argmax()), 32)
    assert abs(row - 25.5) <= 3
    assert abs(column - 4.5) <= 3


@pytest.mark.parametrize(
    ("reach", "cell"),
    [
        (51.2, 0.5),
        (-8.0, 1.0),
        (8.0, -1.0),
        (0.1, 1.0),
        pytest.param(8.0, 0.0),
        pytest.param(
            8.2,
            1.0,
        ),
    ],
)
def test_a_grid_that_does_not_divide_is_refused(reach: float, cell: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.grid"):
        BevGrid(reach=reach, cell=cell)
