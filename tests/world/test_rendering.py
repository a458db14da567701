"""From a scene to pictures and labels: geometry that agrees, and labels that mean what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automoe.errors import WorldError
from automoe.taxonomy import DRIVABLE, SEMANTIC
from automoe.world import polyline
from automoe.world.annotate import boxes_2d, drivable_mask, visible_extents
from automoe.world.lidar import LidarCaster
from automoe.world.look import LOOKS, scene_light, shade
from automoe.world.renderer import Light, Renderer
from automoe.world.rig import mounted_camera, roof_lidar
from automoe.world.scene import Actor, Conditions, EgoState, Scene, project, world_to_camera
from automoe.world.traffic import sample_scene

SIZE = (320, 180)
CAMERA = mounted_camera("front", *SIZE, float(np.radians(66)), (1.5, 0.0, 1.4))


@pytest.fixture(scope="module")
def renderer(small_stage):
    with Renderer(small_stage, *SIZE) as renderer:
        yield renderer


def straight_lane(town):
    """The longest straight inner lane that has a neighbour on its right."""
    lanes = [x for x in town.driving_lanes() if x.right and not town.streets[x.street].curvature]
    return max(lanes, key=lambda lane: lane.length)


def scene_on(stage, lane, station, actors=(), time=0.0):
    point, heading = lane.at(station)
    ego = EgoState(float(point[0]), float(point[1]), float(heading), 5.0, (lane.id,), station)
    return Scene(stage, time, Conditions(), ego, tuple(actors))


def car_at(stage, lane, station, number=0, aside=0.0, key="car0"):
    point, heading = lane.at(station)
    point = point + aside * np.array([-np.sin(heading), np.cos(heading)])
    size = stage.assets[key].size
    category = stage.assets[key].category
    return Actor(
        stage.first_actor_id + number, category, key, float(point[0]), float(point[1]), 0.0, float(heading), size
    )


def test_the_projected_3d_box_holds_the_car_and_little_more(small_stage, renderer):
    lane = straight_lane(small_stage.town)
    car = car_at(small_stage, lane, 18.0)
    scene = scene_on(small_stage, lane, 2.0, [car])
    frame = renderer.render(scene, CAMERA, Light())
    x1, y1, x2, y2, _ = visible_extents(frame.instance)[car.id]
    pixels = project(CAMERA, world_to_camera(scene.T_world_cam(CAMERA), car.corners()))
    low, high = pixels.min(0), pixels.max(0)
    assert (low <= np.array([x1, y1]) + 1).all()
    assert (high >= np.array([x2, y2]) - 1).all()
    assert (x2 - x1) * (y2 - y1) > 0.6 * np.prod(high - low)


def test_boxes_are_the_extent_of_the_visible_pixels(small_stage, renderer):
    scene = sample_scene(small_stage, np.random.default_rng(3))
    frame = renderer.render(scene, CAMERA, Light())
    boxes = boxes_2d(frame, scene, CAMERA)
    assert boxes
    for box in boxes:
        rows, columns = np.nonzero(frame.instance == box.instance)
        assert box.xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box.visible == len(rows)


def test_depth_and_semantics_agree_with_the_flat_road(small_stage, renderer):
    lane = straight_lane(small_stage.town)
    scene = scene_on(small_stage, lane, 5.0)
    frame = renderer.render(scene, CAMERA, Light())
    row = SIZE[1] - 10
    assert SEMANTIC[frame.semantic[row, SIZE[0] // 2]] == "road"
    expected = 1.4 * CAMERA.fy / (row + 0.5 - CAMERA.cy)
    assert frame.depth[row, SIZE[0] // 2] == pytest.approx(expected, rel=0.01)
    assert np.isinf(frame.depth[frame.semantic == SEMANTIC.index("sky")]).all()


def test_a_car_behind_a_bus_is_occluded_and_one_at_the_border_truncated(small_stage, renderer):
    lane = straight_lane(small_stage.town)
    alone = car_at(small_stage, lane, 22.0)
    frame_of = lambda actors: renderer.render(scene_on(small_stage, lane, 2.0, actors), CAMERA, Light())  # noqa: E731
    (box,) = _boxes(small_stage, lane, frame_of([alone]), [alone])
    assert not box.occluded
    assert not box.truncated
    assert box.visible == pytest.approx(box.silhouette, rel=0.12)
    screen = car_at(small_stage, lane, 14.0, 1, aside=1.2)
    boxes = {b.instance: b for b in _boxes(small_stage, lane, frame_of([alone, screen]), [alone, screen])}
    assert boxes[alone.id].occluded
    assert not boxes[screen.id].occluded
    beside = car_at(small_stage, lane, 6.5, 0, aside=-3.2)
    (box,) = _boxes(small_stage, lane, frame_of([beside]), [beside])
    assert box.truncated
    assert box.xyxy[2] == SIZE[0]


def _boxes(stage, lane, frame, actors):
    wanted = {actor.id for actor in actors}
    return [b for b in boxes_2d(frame, scene_on(stage, lane, 2.0, actors), CAMERA) if b.instance in wanted]


def test_drivable_own_lane_direct_neighbour_alternative_oncoming_background(small_stage, renderer):
    town = small_stage.town
    lane = straight_lane(town)
    scene = scene_on(small_stage, lane, 5.0)
    frame = renderer.render(scene, CAMERA, Light())
    mask = drivable_mask(frame, scene, CAMERA)
    assert _class_at(mask, scene, lane.at(17.0)[0]) == "direct"
    assert _class_at(mask, scene, town.lanes[lane.right].at(17.0)[0]) == "alternative"
    point, heading = lane.at(17.0)
    oncoming = point + 3.4 * np.array([-np.sin(heading), np.cos(heading)])
    assert _class_at(mask, scene, oncoming) == "background"
    car = car_at(small_stage, lane, 19.0)
    blocked = replace(scene, actors=(car,))
    frame = renderer.render(blocked, CAMERA, Light())
    mask = drivable_mask(frame, blocked, CAMERA)
    assert (mask[frame.instance == car.id] == DRIVABLE.index("background")).all()


def _class_at(mask, scene, point):
    pixel = project(CAMERA, world_to_camera(scene.T_world_cam(CAMERA), np.array([[*point, 0.0]])))[0]
    return DRIVABLE[mask[int(pixel[1]), int(pixel[0])]]


def test_drivable_follows_the_route_through_a_junction(small_stage, renderer):
    town = small_stage.town
    lane = next(x for x in town.driving_lanes() if len({town.lanes[s].turn for s in x.successors}) > 1)
    masks = []
    for inner in lane.successors:
        scene = scene_on(small_stage, lane, lane.length - 12.0)
        route = (lane.id, inner, town.lanes[inner].successors[0])
        scene = replace(scene, ego=replace(scene.ego, route=route))
        masks.append(drivable_mask(renderer.render(scene, CAMERA, Light()), scene, CAMERA))
    assert (masks[0] != masks[1]).mean() > 0.005


def test_scenes_and_pictures_repeat_exactly(small_stage, renderer):
    pictures = []
    for _ in range(2):
        rng = np.random.default_rng(9)
        scene = sample_scene(small_stage, rng)
        frame = renderer.render(scene, CAMERA, scene_light(scene.conditions))
        pictures.append(shade(frame, scene, CAMERA, renderer, LOOKS["bdd"], rng))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("time_of_day", ["daytime", "dawn/dusk", "night"])
@pytest.mark.parametrize("weather", ["clear", "partly cloudy", "overcast", "rainy", "foggy"])
def test_every_condition_gives_a_picture_that_can_be_seen(small_stage, renderer, time_of_day, weather):
    elevation = {"daytime": 0.8, "dawn/dusk": 0.1, "night": -0.4}[time_of_day]
    conditions = Conditions(weather, time_of_day, 1.0, elevation)
    rng = np.random.default_rng(4)
    scene = sample_scene(small_stage, rng, conditions)
    frame = renderer.render(scene, CAMERA, scene_light(conditions))
    picture = shade(frame, scene, CAMERA, renderer, LOOKS["bdd"], rng)
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    assert picture.dtype == np.uint8
    assert (20 if time_of_day == "night" else 45) < picture.mean() < 225
    assert picture.std() > 10
    if weather == "clear" and time_of_day == "night":
        assert picture.mean() < 90


def test_signals_face_the_traffic_that_they_control(small_stage):
    town = small_stage.town
    heads = [p for p in small_stage.placements if p.signal]
    assert heads
    signals = {signal.id: signal for signal in town.signals}
    for head in heads:
        travel = signals[head.signal].heading
        assert np.cos(head.yaw - travel) < -0.9


def test_too_many_of_one_asset_is_an_error(small_stage, renderer):
    lane = straight_lane(small_stage.town)
    copies = small_stage.copies["car0"] + 1
    cars = [car_at(small_stage, lane, 6.0 + 6 * i, i) for i in range(copies)]
    with pytest.raises(WorldError, match="'car0'"):
        renderer.render(scene_on(small_stage, lane, 1.0, cars), CAMERA, Light())


def test_vehicles_neither_overlap_nor_leave_the_road(small_stage):
    import shapely

    from automoe.world.surface import road_area

    road = road_area(small_stage.town).buffer(0.6)
    for seed in range(4):
        scene = sample_scene(small_stage, np.random.default_rng(seed))
        vehicles = [a for a in scene.actors if a.category not in ("pedestrian", "rider")]
        shapes = [shapely.Polygon(a.corners()[[0, 2, 6, 4], :2]) for a in vehicles]
        for i, shape in enumerate(shapes):
            assert road.contains(shape.centroid)
            assert all(shape.intersection(other).area < 0.05 for other in shapes[:i])


def test_lidar_points_lie_on_what_they_hit(small_stage):
    lane = straight_lane(small_stage.town)
    car = car_at(small_stage, lane, 18.0)
    scene = scene_on(small_stage, lane, 5.0, [car])
    lidar = roof_lidar(columns=360)
    sweep = LidarCaster(small_stage).sweep(scene, lidar)
    T = scene.ego.T_world_ego @ lidar.T_ego_lidar
    world = sweep.points @ T[:3, :3].T + T[:3, 3]
    road = sweep.semantic == SEMANTIC.index("road")
    assert road.sum() > 500
    assert np.abs(world[road, 2]).max() < 0.05
    on_car = world[sweep.instance == car.id]
    assert len(on_car) > 20
    assert (np.abs(on_car[:, :2] - car.centre[:2]).max(1) < car.size[0]).all()
    along, _ = polyline.project(lane.centre, on_car[:, :2].mean(0))
    assert along < 18.0  # it sees the rear


def test_what_is_not_drawn_would_not_be_seen(small_stage, renderer, monkeypatch: pytest.MonkeyPatch):
    """Leaving out what buildings hide, and colour where something else has the pixel, changes nothing."""
    scenes = [sample_scene(small_stage, np.random.default_rng(seed)) for seed in range(4)]
    frames = [renderer.render(scene, CAMERA, Light()) for scene in scenes]
    drawn: list[tuple[int, int]] = []
    kept = Renderer._not_hidden

    def all_of_them(self, geoms, camera, T_world_cam):
        drawn.append((len(geoms), len(kept(self, geoms, camera, T_world_cam))))
        return geoms

    monkeypatch.setattr(Renderer, "_not_hidden", all_of_them)
    monkeypatch.setattr(
        Renderer, "_worth_colour", lambda self, geom, shown: np.isin(np.arange(self.model.ngeom), shown)
    )
    for scene, frame in zip(scenes, frames, strict=True):
        whole = renderer.render(scene, CAMERA, Light())
        for name in ("rgb", "depth", "geom", "semantic", "instance"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(whole, name), err_msg=name)
    assert sum(few for _, few in drawn) < 0.9 * sum(all_ for all_, _ in drawn)


def test_geoms_are_drawn_in_the_order_of_their_ids(small_stage, renderer):
    """Their colours in the id picture count them in this order."""
    scene = sample_scene(small_stage, np.random.default_rng(1))
    renderer.place(scene)
    shown = renderer._in_view(CAMERA, scene.T_world_cam(CAMERA))
    renderer._draw(shown, CAMERA, scene.T_world_cam(CAMERA))
    entries = renderer._scene.geoms[: renderer._scene.ngeom]
    assert [(entry.segid, entry.objid) for entry in entries] == list(enumerate(shown.tolist()))


def test_the_lidar_hits_movers_as_if_they_were_part_of_the_town(small_stage):
    caster, lidar = LidarCaster(small_stage), roof_lidar(32, 360)
    for seed in range(3):
        scene = sample_scene(small_stage, np.random.default_rng(seed))
        frozen = replace(scene, actors=tuple(replace(actor, parked=True) for actor in scene.actors))
        moving, standing = caster.sweep(scene, lidar), caster.sweep(frozen, lidar)
        np.testing.assert_allclose(moving.distance, standing.distance, atol=1e-3)
        np.testing.assert_array_equal(moving.instance, standing.instance)
        np.testing.assert_array_equal(moving.semantic, standing.semantic)
        assert (moving.instance > 0).sum() > 50
