"""Cameras round a car as one picture: projection, the choice of a camera, and the places on the wide map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from automoe.data.nuscenes import CameraFrame, Nuscenes, project
from automoe.experts.rig_geometry import NOWHERE, Rig

SIZE = (60, 100)


def turned(yaw: float, at: tuple[float, float, float] = (0.0, 0.0, 1.5)) -> torch.Tensor:
    """T_cam_ego of a level camera at a place of the ego frame that looks along a yaw (degrees, to the left)."""
    cos, sin = np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw))
    rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]], dtype=torch.float32)
    out = torch.eye(4)
    out[:3, :3], out[:3, 3] = rotation, -(rotation @ torch.tensor(at))
    return out


def make_rig(
    *yaws: float, focal: float = 50.0, present: tuple[bool, ...] | None = None, size: tuple[int, int] = SIZE
) -> Rig:
    intrinsic = torch.tensor([[focal, 0, size[1] / 2], [0, abs(focal), size[0] / 2], [0, 0, 1.0]])
    count = len(yaws)
    return Rig(
        torch.stack([turned(yaw) for yaw in yaws])[None],
        intrinsic.expand(1, count, 3, 3),
        size,
        torch.tensor([present or (True,) * count]),
    )


def points(*places: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float32)[None]


def test_places_by_hand() -> None:
    """Straight ahead is the middle; one metre to the left at a depth of ten is five pixels to the left."""
    places, seen = make_rig(0.0).project(points((10, 0, 1.5), (10, 1, 1.5), (10, 0, 2.5), (20, -4, 0.5)))
    expected = torch.tensor([[50.0, 30], [45, 30], [50, 25], [60, 32.5]]) / torch.tensor([100.0, 60])
    torch.testing.assert_close(places[0, 0], expected)
    assert seen.all()


def test_it_projects_as_the_reader_does(fixtures: Callable[[str], Path]) -> None:
    sample = Nuscenes(fixtures("nuscenes_one_sample_dataroot")).split("train")[0]
    cameras = list(sample.cameras.values())
    spots = np.random.default_rng(0).uniform(-40, 40, (500, 3)) * [1, 1, 0.1]
    rig = Rig(
        torch.from_numpy(np.stack([c.T_cam_ego for c in cameras])[None]).float(),
        torch.from_numpy(np.stack([c.intrinsic for c in cameras])[None]).float(),
        cameras[0].size,
        torch.ones(1, 6, dtype=torch.bool),
    )
    places, seen = rig.project(torch.from_numpy(spots)[None].float())
    for number, camera in enumerate(cameras):
        pixels, depth = project(spots, camera)
        height, width = camera.size
        inside = (depth > 0.3) & (pixels > 0).all(axis=1) & (pixels < [width, height]).all(axis=1)
        np.testing.assert_array_equal(seen[0, number].numpy(), inside)
        assert 30 < inside.sum() < 250
        np.testing.assert_allclose(places[0, number].numpy()[inside] * [width, height], pixels[inside], atol=0.05)


def test_a_smaller_picture_with_its_intrinsics_shows_the_same_places() -> None:
    large = make_rig(10.0, focal=200.0, size=(240, 400)).project(points((10, 1, 1), (5, -1, 2)))[0]
    small = make_rig(10.0, focal=50.0, size=(60, 100)).project(points((10, 1, 1), (5, -1, 2)))[0]
    torch.testing.assert_close(large, small)


def test_a_point_takes_the_camera_that_has_it_farther_inside() -> None:
    """Two cameras of 90 degrees, 60 degrees apart: 30 degrees to the left both have it as far from the middle."""
    rig = make_rig(0.0, 60.0)
    angles = torch.tensor([0.0, 20.0, 28.0, 32.0, 40.0, 60.0]).deg2rad()
    spots = torch.stack([10 * angles.cos(), 10 * angles.sin(), torch.full((6,), 1.5)], dim=-1)[None]
    found = rig.locate(spots, 20)
    # Of 41 columns the first 20 are the first camera's, the last 20 the second's.
    assert (found[0, :, 0] > 20.5 / 41).tolist() == [False, False, False, True, True, True]
    torch.testing.assert_close(found[0, [0, 5]], torch.tensor([[10.0 / 41, 0.5], [31.0 / 41, 0.5]]))


def test_nothing_is_seen_behind_beyond_or_by_an_absent_camera() -> None:
    spots = points((-10, 0, 1.5), (0.2, 0, 1.5), (5, 6, 1.5), (5, 0, 9), (10, 0, 1.5))
    found = make_rig(0.0).locate(spots, 20)
    assert (found[0, :4] == NOWHERE).all()
    assert (found[0, 4] == 0.5).all()
    assert (make_rig(0.0, present=(False,)).locate(spots, 20) == NOWHERE).all()
    # Two look the same way, one of them is away: the other one is taken.
    places = make_rig(0.0, 0.0, present=(False, True)).locate(spots, 20)
    torch.testing.assert_close(places[0, 4], torch.tensor([31.0 / 41, 0.5]))
    torch.testing.assert_close(places[0, :4], found[0, :4])


def sample(feature_map: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(feature_map, (places * 2 - 1)[:, :, None], align_corners=False)[..., 0].transpose(1, 2)


@pytest.mark.parametrize("focal", [50.0, -50.0])
def test_the_wide_map_is_each_camera_s_own_map(focal: float) -> None:
    """Also at the margins, where a picture ends in zero, and with a mirrored picture."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2 * 3, 5, 6, 10, generator=generator)
    present = torch.tensor([[True, True, True], [True, False, True]])
    T = torch.stack([turned(yaw) for yaw in (0.0, 75.0, -120.0)]).expand(2, -1, -1, -1)
    intrinsic = torch.tensor([[focal, 0, 50], [0, 50, 30], [0, 0, 1.0]]).expand(2, 3, 3, 3)
    rig = Rig(T, intrinsic, SIZE, present)
    spots = torch.randn(2, 400, 3, generator=generator) * torch.tensor([12.0, 12.0, 2.0])
    wide = rig.side_by_side(maps)
    assert wide.shape == (2, 5, 6, 3 * 11 - 1)
    got = sample(wide, rig.locate(spots, 10))
    places, seen = rig.project(spots)
    own = sample(maps, places.flatten(0, 1)).view(2, 3, 400, 5)
    margin = torch.minimum(places, 1 - places).amin(dim=-1).masked_fill(~seen, -1)
    camera = margin.argmax(dim=1)
    expected = own.gather(1, camera[:, None, :, None].expand(-1, -1, -1, 5))[:, 0] * seen.any(dim=1)[..., None]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    # All three are looked into, and the cut between pictures is met.
    assert set(camera[0][seen[0].any(dim=0)].tolist()) == {0, 1, 2}
    assert (margin.amax(dim=1) > 0).float().mean() > 0.3
    assert ((margin.amax(dim=1) > 0) & (margin.amax(dim=1) < 0.05)).any()
    assert (got[~seen.any(dim=1)] == 0).all()
    assert not seen[1, 1].any()
    assert (wide[1, :, :, 11:21] == 0).all()


def test_a_mirrored_picture_has_mirrored_places() -> None:
    spots = points((10, 2, 1.0), (10, -3, 2.0))
    plain, mirrored = make_rig(0.0).project(spots)[0], make_rig(0.0, focal=-50.0).project(spots)[0]
    torch.testing.assert_close(mirrored[..., 0], 1 - plain[..., 0])
    torch.testing.assert_close(mirrored[..., 1], plain[..., 1])


def test_points_learn_from_what_is_seen_there() -> None:
    """Where a reference looks is learnt through the place: it needs a finite gradient, seen or not."""
    spots = points((10, 0.3, 1.5), (-10, 0, 1.5), (0, 0, 1.5)).requires_grad_()
    rig = make_rig(0.0)
    ramp = torch.arange(10.0).expand(1, 1, 6, 10)
    sample(rig.side_by_side(ramp), rig.locate(spots, 10)).sum().backward()
    assert spots.grad is not None
    assert spots.grad.isfinite().all()
    assert spots.grad[0, 0, 1] < 0  # to the left the ramp falls
    assert (spots.grad[0, 1:] == 0).all()


def test_places_are_exact_under_autocast() -> None:
    rig = make_rig(0.0, 60.0, 120.0, 180.0, -120.0, -60.0, focal=800.0, size=(900, 1600))
    angles = torch.linspace(-3, 3, 200)
    spots = torch.stack([30 * angles.cos(), 30 * angles.sin(), torch.full((200,), 1.0)], dim=-1)[None]
    exact = rig.locate(spots, 400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = rig.locate(spots, 400).float()
    columns = (exact - rough)[..., 0].abs() * (6 * 401 - 1)
    assert columns.max() < 0.1


def test_a_camera_of_the_reader_by_hand() -> None:
    """The hand-made camera is what `CameraFrame` says: `project` and `Rig` tell the same of it."""
    T = turned(30.0, (1.0, 0.5, 1.6))
    intrinsic = torch.tensor([[50.0, 0, 50], [0, 50, 30], [0, 0, 1]])
    camera = CameraFrame("CAM_FRONT", Path(), 0, SIZE, intrinsic.double().numpy(), T.double().numpy())
    spots = points((10, 5, 1), (8, 6, 2), (20, 9, 0))
    pixels, depth = project(spots[0].double().numpy(), camera)
    assert (depth > 5).all()
    places, _ = Rig(T[None, None], intrinsic[None, None], SIZE, torch.ones(1, 1, dtype=torch.bool)).project(spots)
    np.testing.assert_allclose(places[0, 0].numpy() * [100, 60], pixels, atol=1e-3)
