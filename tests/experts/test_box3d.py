"""3D references: their numbers, where offsets look on the map and in pictures, and how boxes lie to each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from automoe.experts.box3d import LARGEST_STEP, LOG_SIZE, NUMBERS, Box3dReference, decode_boxes, encode_boxes
from automoe.experts.pillars import BevGrid
from automoe.experts.rig_geometry import Rig
from automoe.poses import box_corners

GRID = BevGrid(reach=32.0, cell=1.0)
SIZE = (60, 100)
COLUMNS = 25
YAWS = [0.0, 0.4, np.pi / 2, 2.5, -np.pi + 1e-3, -1.0]


def front_rig(batch: int = 1) -> Rig:
    """One camera over the ego's middle that looks ahead."""
    T = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 1.5], [1, 0, 0, 0], [0, 0, 0, 1]])
    intrinsic = torch.tensor([[50.0, 0, 50], [0, 50, 30], [0, 0, 1]])
    return Rig(T.repeat(batch, 1, 1, 1), intrinsic.repeat(batch, 1, 1, 1), SIZE, torch.ones(batch, 1, dtype=torch.bool))


def boxes_of(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def references(*rows: tuple[float, ...]) -> torch.Tensor:
    boxes = boxes_of(*rows)
    return encode_boxes(boxes, torch.zeros(len(boxes), 2))[None]


def metres(places: torch.Tensor) -> torch.Tensor:
    """Fractions of the map (column, row) back to x, y."""
    return (places * 2 * GRID.reach - GRID.reach).flip(-1)


def test_numbers_and_back() -> None:
    generator = np.random.default_rng(0)
    boxes = torch.from_numpy(generator.uniform(-30, 30, (50, 7))).float()
    boxes[:, 3:6] = boxes[:, 3:6].abs() / 4 + 0.2
    boxes[:, 6] = torch.from_numpy(generator.uniform(-np.pi, np.pi, 50)).float()
    velocity = torch.from_numpy(generator.normal(size=(50, 2))).float() * 5
    numbers = encode_boxes(boxes, velocity)
    assert numbers.shape == (50, NUMBERS)
    back, speed = decode_boxes(numbers)
    torch.testing.assert_close(back, boxes, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(speed, velocity)
    # The yaw is that of the heading, whatever the length of the two numbers.
    numbers[:, 6:8] *= 3.0
    torch.testing.assert_close(decode_boxes(numbers)[0], boxes, atol=1e-4, rtol=1e-5)


def test_an_unknown_velocity_stays_unknown() -> None:
    numbers = encode_boxes(torch.zeros(1, 7), torch.full((1, 2), float("nan")))
    assert numbers.isnan().tolist() == [[False] * 8 + [True] * 2]
    assert numbers[:, :8].isfinite().all()  # a box without size too


@pytest.mark.parametrize("yaw", YAWS)
def test_offsets_on_the_map_are_in_units_of_the_box(yaw: float) -> None:
    """(1, 0) is the middle of its front, (0, 1) of its left side, and the corners are those of `box_corners`."""
    row = (7.0, -4.0, 0.5, 4.0, 2.0, 1.6, yaw)
    sides = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 1], [-1, -1], [1, -1], [0, 0]])
    offsets = sides.view(1, 1, 1, 1, 7, 2)
    places = Box3dReference(GRID).locate(references(row), offsets)
    assert places.shape == offsets.shape
    got = metres(places[0, 0, 0, 0]).numpy()
    corners = box_corners(np.array([row]))[0, :4, :2]  # front left, rear left, rear right, front right
    np.testing.assert_allclose(got[2:6], corners, atol=1e-4)
    np.testing.assert_allclose(got[0], (corners[0] + corners[3]) / 2, atol=1e-4)
    np.testing.assert_allclose(got[1], (corners[0] + corners[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(got[6], row[:2], atol=1e-4)


def test_every_query_head_and_point_has_its_own_place() -> None:
    rows = [(5.0, 3.0, 0.0, 4.0, 2.0, 1.5, 0.3), (-9.0, 1.0, 0.0, 8.0, 3.0, 3.0, -1.2), (12.0, 0, 1, 0.5, 0.5, 1, 2.0)]
    both = torch.cat([references(*rows), references(*rows[::-1])])
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(2, 3, 2, 3, 4, 2, generator=generator)
    rig = front_rig(batch=2)
    geometry = Box3dReference(GRID, rig, (COLUMNS, 13))
    places = geometry.locate(both, offsets)
    assert places.shape == offsets.shape
    for b, q, h, p in ((0, 0, 1, 3), (0, 2, 0, 1), (1, 1, 1, 0), (1, 2, 0, 2)):
        only = offsets[b : b + 1, q : q + 1, h : h + 1, :, p : p + 1]
        alone = Box3dReference(GRID, front_rig(), (COLUMNS, 13)).locate(both[b : b + 1, q : q + 1], only)
        torch.testing.assert_close(places[b, q, h, :, p], alone[0, 0, 0, :, 0])


def look(row: tuple[float, ...], offset: tuple[float, float]) -> torch.Tensor:
    """Where an offset falls in the picture, x and y in 0 to 1."""
    offsets = torch.tensor(offset).view(1, 1, 1, 1, 1, 2).expand(1, 1, 1, 2, 1, 2)
    return Box3dReference(GRID, front_rig(), (COLUMNS,)).locate(references(row), offsets)[0, 0, 0, 1, 0]


def test_offsets_in_a_picture_by_hand() -> None:
    """Ten metres ahead, four long, two wide and high: half its larger side is ten pixels, half its height five."""
    row = (10.0, 0.0, 1.5, 4.0, 2.0, 2.0, 0.7)
    pixels = torch.tensor([100.0, 60.0])
    torch.testing.assert_close(look(row, (0, 0)) * pixels, torch.tensor([50.0, 30.0]))
    torch.testing.assert_close(look(row, (0, 1)) * pixels, torch.tensor([50.0, 25.0]))  # up in the picture
    torch.testing.assert_close(look(row, (1, 0)) * pixels, torch.tensor([40.0, 30.0]))  # to the left
    torch.testing.assert_close(look(row, (-0.5, -1)) * pixels, torch.tensor([55.0, 35.0]))


def test_sideways_is_square_to_the_line_of_sight() -> None:
    """A box aside, at 45 degrees: both sideways spots are as far from the ego, and its centre lies between them."""
    row = (14.0, 10.0, 1.5, 4.0, 2.0, 2.0, 0.0)
    spots = torch.stack([look(row, (one, 0.0)) for one in (1.0, 0.0, -1.0)])
    assert spots[0, 0] < spots[1, 0] < spots[2, 0]
    torch.testing.assert_close(spots[:, 1], torch.full((3,), 0.5))
    bearing = torch.atan2((spots[:, 0] - 0.5) * 100, torch.tensor(50.0))
    torch.testing.assert_close(bearing[1] - bearing[0], bearing[2] - bearing[1], atol=1e-4, rtol=0)


def test_a_box_that_no_camera_sees_is_looked_for_on_the_map_only() -> None:
    row = (-10.0, 0.0, 1.0, 4.0, 2.0, 2.0, 0.0)
    offsets = torch.zeros(1, 1, 1, 2, 1, 2)
    places = Box3dReference(GRID, front_rig(), (COLUMNS,)).locate(references(row), offsets)[0, 0, 0, :, 0]
    torch.testing.assert_close(metres(places[0]), torch.tensor([-10.0, 0.0]))
    assert (places[1] < -1).all()


def test_refining() -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(2, 5, NUMBERS, generator=generator) * 0.5
    geometry = Box3dReference(GRID)
    torch.testing.assert_close(geometry.refine(many, torch.zeros_like(many)), many, rtol=0, atol=0)
    delta = torch.randn(2, 5, NUMBERS, generator=generator) * 0.1
    torch.testing.assert_close(geometry.refine(many, delta), many + delta)
    wild = geometry.refine(many, torch.full_like(many, 1e6))
    torch.testing.assert_close(wild[..., :3], many[..., :3] + LARGEST_STEP)
    assert (wild[..., 3:6] == LOG_SIZE[1]).all()
    assert decode_boxes(wild)[0].isfinite().all()
    assert (geometry.refine(many, torch.full_like(many, -1e6))[..., 3:6] == LOG_SIZE[0]).all()


def test_what_is_known_of_a_box_does_not_depend_on_where_round_the_car_it_is() -> None:
    """How far and how large; not the bearing, so that what is learnt ahead holds behind."""
    size = (4.0, 2.0, 1.5)
    ahead, aside = references((10.0, 0, 0, *size, 0.0)), references((0.0, -10, 0, *size, 2.0))
    geometry = Box3dReference(GRID)
    assert geometry.encode(ahead, 32).shape == (1, 1, 32)
    torch.testing.assert_close(geometry.encode(ahead, 32), geometry.encode(aside, 32), atol=1e-4, rtol=0)
    for other in ((20.0, 0, 0, *size, 0.0), (10.0, 0, 0, 8.0, 2.0, 1.5, 0.0)):
        assert (geometry.encode(references(other), 32) - geometry.encode(ahead, 32)).abs().max() > 0.1
    assert geometry.encode(references((0.0, 0, 0, *size, 0.0)), 32).isfinite().all()


def test_how_boxes_lie_to_each_other_by_hand() -> None:
    """A car of four metres, and eight metres to its left one of half the length that is turned by a right angle."""
    pair = references((3.0, 2.0, 0, 4.0, 2.0, 1.5, 0.0), (3.0, 10.0, 0, 2.0, 1.0, 1.5, np.pi / 2))
    found = Box3dReference(GRID).relate(pair)
    assert found.shape == (1, 2, 2, Box3dReference.relations)
    # Along, across (in own lengths, log1p), cosine of the turn, log ratio of lengths, nearness.
    near = np.exp(-4.0)
    expected = torch.tensor([[0.0, np.log(3), 0, -np.log(2), near], [np.log(5), 0, 0, np.log(2), near]])
    torch.testing.assert_close(found[0, [0, 1], [1, 0]], expected.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 0, 1, 0, 1]), atol=1e-6, rtol=0)


def test_relations_and_places_turn_with_the_world() -> None:
    """A turn of the whole world changes no relation, and moves places as it moves the boxes."""
    rows = np.array([(5.0, 3.0, 0.0, 4.0, 2.0, 1.5, 0.3), (-9.0, 1.0, 0.0, 8.0, 3.0, 3.0, -1.2)])
    turn = 0.8
    moved = rows.copy()
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved[:, :2] = rows[:, :2] @ rotation.T
    moved[:, 6] += turn
    geometry = Box3dReference(GRID)
    before, after = references(*rows.tolist()), references(*moved.tolist())
    torch.testing.assert_close(geometry.relate(before), geometry.relate(after), atol=1e-4, rtol=0)
    offsets = torch.randn(1, 2, 1, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    turned = metres(geometry.locate(before, offsets)) @ torch.from_numpy(rotation.T).float()
    torch.testing.assert_close(metres(geometry.locate(after, offsets)), turned, atol=1e-4, rtol=0)


def test_equal_boxes_and_boxes_without_heading_stay_finite() -> None:
    same = references((3.0, 2.0, 0, 4.0, 2.0, 1.5, 0.3), (3.0, 2.0, 0, 4.0, 2.0, 1.5, 0.3))
    same[..., 6:8] = torch.tensor([[[0.0, 0.0], [0.3, 0.9]]])
    same.requires_grad_()
    geometry = Box3dReference(GRID, front_rig(), (COLUMNS,))
    places = geometry.locate(same, torch.zeros(1, 2, 1, 2, 1, 2))
    total = geometry.relate(same).sum() + geometry.encode(same, 16).sum() + places.sum()
    total.backward()
    assert total.isfinite()
    assert same.grad is not None
    assert same.grad.isfinite().all()
