"""Each measure on videos whose answer is known: right, wrong, still, noisy, blurred, a perfect copy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from i2vgen.data.motion import AMOUNTS
from i2vgen.evaluate import camera, objects, reconstruction, refinement, truth
from i2vgen.evaluate.animator import Made
from i2vgen.evaluate.held_out import Thing
from i2vgen.evaluate.motion import global_motion
from i2vgen.evaluate.object_motion import DIRECTIONS, object_motion
from i2vgen.evaluate.real_moves import TRUTH_KINDS, filmed, moved_still, sharp_pan, times_of
from i2vgen.evaluate.runs import run_items
from i2vgen.evaluate.spectrum import detail_agreement, flicker, spatial_power, temporal_power, upper_energy
from i2vgen.media import center_crop_wide
from moving_clips import cv2, make_clip, make_texture

SIZE = (192, 128)
TIMES = times_of(8, 4)
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"}


@pytest.fixture(scope="module")
def picture():
    """A photo with detail at every scale, `(340 480 3)`."""
    return np.ascontiguousarray(make_texture(4, 480)[:340])


@pytest.fixture(scope="module")
def photo(picture, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a.png"
    Image.fromarray(picture).save(path)
    return path


class FakeAnimator:
    """`move(image uint8 (h w 3), prompt, seed)` makes the frames; its VAE changes nothing."""

    num_frames, fps = len(TIMES), 4

    def __init__(self, move):
        self.move = move

    def size_for(self, image_size):
        return SIZE

    def animate(self, image, prompt, seed, keep_base=False):
        frames = self.move(np.asarray(center_crop_wide(image, SIZE)), prompt, seed)
        small = np.stack([cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for f in frames])
        return Made(frames, small if keep_base else None, 0.1)

    def reconstruct(self, frames, seed=None):
        return frames


def still(image, prompt, seed):
    return np.repeat(image[None], len(TIMES), axis=0)


def noise(image, prompt, seed):
    return np.random.default_rng(seed).integers(0, 256, (len(TIMES), *image.shape), np.uint8)


def blurred(frames, sigma=1.5):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noisy(frames, deviation=4.0):
    added = frames + np.random.default_rng(3).normal(0, deviation, frames.shape)
    return np.clip(added, 0, 255).astype(np.uint8)


def follows(prompt_kinds, hears_speed=True, is_contrary=False):
    """Moves as the prompt says; `prompt_kinds`: prompt -> (kind, speed)."""

    def move(image, prompt, seed):
        kind, speed = prompt_kinds[prompt]
        if kind == "static":
            return still(image, prompt, seed)
        axis, direction = kind.split("-")
        if is_contrary:
            direction = OPPOSITE[direction]
        factor = {"slowly": 0.5, "plain": 1.0, "quickly": 1.7}[speed] if hears_speed else 1.0
        return moved_still(image, f"{axis}-{direction}", TIMES * factor)

    return move


def camera_report(photo, tmp_path, **character):
    kinds = ["pan-left", "static"]
    items = camera.plan({photo: "a texture"}, 1, kinds=kinds)
    move = character.pop("move", None) or follows({i.prompt: (i.kind, i.speed) for i in items}, **character)
    results = run_items("motion", items, lambda item: camera.work(item, FakeAnimator(move)), tmp_path, {})
    report = camera.report(results, [])
    assert report.num_errors == 0
    assert "| pan-left |" in report.to_markdown()
    return [bar.is_met for bar in report.bars], report


def test_camera_that_obeys_meets_every_bar(photo, tmp_path):
    met, report = camera_report(photo, tmp_path)
    assert met == [True] * 4, report.to_markdown()
    assert report.num_clips == 3 + 1


def test_camera_that_goes_the_other_way(photo, tmp_path):
    met, report = camera_report(photo, tmp_path, is_contrary=True)
    assert met == [False, False, True, True]
    assert report.bars[0].found == 0


def test_camera_that_ignores_speed_words(photo, tmp_path):
    met, report = camera_report(photo, tmp_path, hears_speed=False)
    assert met == [True, False, True, True]
    assert report.bars[1].found == 0


def test_camera_that_never_moves_or_shows_noise(photo, tmp_path):
    met, report = camera_report(photo, tmp_path / "still", move=still)
    assert met == [False, False, False, True], report.to_markdown()
    met, report = camera_report(photo, tmp_path / "noise", move=noise)
    assert met == [False, False, False, False], report.to_markdown()


def test_camera_that_cannot_stand_still(photo, tmp_path):
    def wobbles(image, prompt, seed):
        there = moved_still(image, "pan-left", TIMES * 0.6)
        return np.concatenate([there[::2], there[::-2]])

    items = camera.plan({photo: ""}, 1, kinds=["pan-left", "static"])
    right = follows({i.prompt: (i.kind, i.speed) for i in items})
    prompts = {i.prompt for i in items if i.kind == "static"}

    def move(image, prompt, seed):
        return (wobbles if prompt in prompts else right)(image, prompt, seed)

    results = run_items("motion", items, lambda item: camera.work(item, FakeAnimator(move)), tmp_path, {})
    assert not camera.report(results, []).bars[2].is_met


@pytest.mark.parametrize("kind", TRUTH_KINDS)
def test_real_moves_go_where_the_words_say(picture, kind):
    axis, direction = kind.split("-")
    component = {"pan": "dx", "tilt": "dy", "zoom": "scale"}[axis]
    sign = {"left": 1, "right": -1, "up": 1, "down": -1, "in": 1, "out": -1}[direction]
    frames = filmed(picture, kind, SIZE, TIMES, np.random.default_rng(0))
    wanted = sign * AMOUNTS[axis]["normal"] * TIMES[-1]
    assert global_motion(frames).signed(component) == pytest.approx(wanted, rel=0.06)
    # the still image moved by the same amounts shows the same, as far as it goes
    assert truth.frame_psnr(moved_still(frames[0], kind, TIMES), frames) > 3 + truth.frame_psnr(
        still(frames[0], "", 0), frames
    )
    assert filmed(picture[:120, :180], kind, SIZE, TIMES, np.random.default_rng(0)) is None


@pytest.mark.parametrize("kind", ("pan-left", "pan-right"))
def test_sharp_pan_moves_evenly_and_keeps_its_detail(picture, kind):
    smooth, whole = (sharp_pan(picture, kind, SIZE, TIMES, is_whole) for is_whole in (False, True))
    assert np.abs(smooth[0].astype(int) - whole[0]).max() <= 1
    wanted = (1 if kind == "pan-left" else -1) * AMOUNTS["pan"]["normal"] * TIMES[-1]
    for frames in (smooth, whole):
        assert global_motion(frames).dx == pytest.approx(wanted, rel=0.05)
    energies = [upper_energy(refinement.mean_power(frames)) for frames in (smooth, whole)]
    assert energies[0] == pytest.approx(energies[1], rel=0.15)
    assert sharp_pan(picture[:100], kind, SIZE, TIMES) is None


def test_truth_measures_the_gain_over_the_still_image(picture):
    real = filmed(picture, "pan-left", SIZE, TIMES, np.random.default_rng(0))
    wrong = filmed(picture, "pan-right", SIZE, TIMES, np.random.default_rng(0))

    def gain(frames):
        figures = truth.compare(frames, real)
        return figures["psnr"] - figures["still_psnr"]

    assert gain(real) > 50
    assert gain(still(real[0], "", 0)) == pytest.approx(0)
    assert gain(noise(real[0], "", 0)) < 0
    assert gain(np.concatenate([real[:1], wrong[1:]])) < 1
    assert 3 < gain(noisy(real)) < gain(real)
    assert truth.compare(blurred(real), real)["sharpness"] < 0.6
    with pytest.raises(ValueError, match="differ in shape"):
        truth.compare(real[:3], real)


def test_truth_report_of_a_perfect_and_of_a_still_model(photo, picture, tmp_path):
    items = [item for item in truth.plan({photo: ""}, 1) if item.kind in ("pan-left", "tilt-down", "zoom-in")]
    kinds = {item.prompt: (item.kind, "plain") for item in items}
    for name, move, is_met in (("good", follows(kinds), True), ("still", still, False)):
        results = run_items("truth", items, lambda i, m=move: truth.work(i, FakeAnimator(m)), tmp_path / name, {})
        report = truth.report(results, [])
        assert report.num_errors == 0
        assert [bar.is_met for bar in report.bars] == [is_met], report.to_markdown()
    small = photo.with_name("small.png")
    Image.fromarray(picture[:100, :150]).save(small)
    results = run_items("s", truth.plan({small: ""}, 1), lambda i: truth.work(i, FakeAnimator(still)), tmp_path, {})
    assert "too small for the path: 6 of 6" in truth.report(results, []).to_markdown()
    assert not truth.report(results, []).bars[0].is_met


def test_film_compares_a_short_shot_as_far_as_it_goes(tmp_path):
    clip = make_clip(dx=0.2, num_frames=60)
    pack = SimpleNamespace(film_frames=lambda start, count: clip[start : start + count])
    shots = [
        SimpleNamespace(start_frame=s, end_frame=e, motion=1.0, caption=f"shot {s}") for s, e in ((0, 60), (40, 60))
    ]
    items = truth.plan_film(shots, 1)
    wanted = {f"shot {s}": clip[s::6][: len(TIMES)] for s in (0, 40)}
    padded = {k: np.concatenate([v, np.repeat(v[-1:], len(TIMES) - len(v), 0)]) for k, v in wanted.items()}
    for name, move, is_met in (("copy", lambda i, p, s: padded[p], True), ("still", still, False)):
        animator = FakeAnimator(move)
        results = run_items("film", items, lambda i, a=animator: truth.work_film(i, a, pack), tmp_path / name, {})
        report = truth.report_film(results, [])
        assert [c["num_frames"] for c in results["clips"].values()] == [8, 4], results
        assert [bar.is_met for bar in report.bars] == [is_met], report.to_markdown()
    with pytest.raises(ValueError, match="24 frames a second"):
        truth.shot_frames(pack, shots[0], SimpleNamespace(fps=30, num_frames=8))


def test_spectrum_of_known_waves():
    x = np.arange(128)
    for frequency, is_upper in ((0.1, False), (0.2, False), (0.3, True), (0.45, True)):
        wave = np.broadcast_to(128 + 60 * np.sin(2 * np.pi * frequency * x), (96, 128))
        power = spatial_power(np.repeat(wave[..., None], 3, axis=2).astype(np.uint8))
        assert power.sum() == pytest.approx(60**2 / 2, rel=0.05)
        assert upper_energy(power) / power.sum() == pytest.approx(float(is_upper), abs=0.02)
        assert abs(int(power.argmax()) - int(2 * frequency * 32)) <= 1


def test_temporal_spectrum_of_a_blinking_picture():
    frames = np.full((16, 40, 40, 3), 100, np.uint8)
    assert temporal_power(frames).sum() == pytest.approx(0)
    frames[::2] += 50
    assert temporal_power(frames).argmax() == 8


def test_detail_must_be_there_and_be_the_photos(picture):
    frame = np.ascontiguousarray(picture[:128, :192])
    energy = upper_energy(spatial_power(frame))
    soft, rough = blurred(frame[None])[0], noisy(frame[None], 30)[0]
    assert upper_energy(spatial_power(soft)) < 0.6 * energy
    assert upper_energy(spatial_power(rough)) > 1.25 * energy
    assert detail_agreement(frame, frame) == pytest.approx(1)
    assert abs(detail_agreement(frame, noise(frame, "", 1)[0])) < 0.1
    assert detail_agreement(frame, rough) < 0.75


def test_flicker_is_what_is_left_along_the_motion(picture):
    real = sharp_pan(picture, "pan-right", SIZE, TIMES)
    bar = 1.3 * flicker(real)
    uneven = sharp_pan(picture, "pan-right", SIZE, TIMES + np.where(np.arange(len(TIMES)) % 2, 0.012, 0))
    assert flicker(uneven) < bar
    assert flicker(still(real[0], "", 0)) == pytest.approx(0, abs=0.05)
    assert flicker(blurred(real)) < bar
    assert flicker(noisy(real)) > bar
    blinking = real.copy()
    blinking[::2] = np.clip(blinking[::2].astype(int) + 8, 0, 255)
    assert flicker(blinking) > bar
    with pytest.raises(ValueError, match="3 frames"):
        flicker(real[:2])


def test_refinement_report(photo, picture, tmp_path):
    items = refinement.plan({photo: ""}, 1)
    real = {i.prompt: sharp_pan(picture, i.kind, SIZE, TIMES) for i in items}
    cases = {
        "real": (lambda i, p, s: real[p], [True, True, True]),
        "soft": (lambda i, p, s: blurred(real[p]), [False, True, True]),
        "rough": (lambda i, p, s: noisy(real[p], 5), [False, True, False]),
    }
    for name, (move, met) in cases.items():
        folder = tmp_path / name
        results = run_items("spectrum", items, lambda i, m=move: refinement.work(i, FakeAnimator(m)), folder, {})
        report = refinement.report(results, [])
        assert [bar.is_met for bar in report.bars] == met, report.to_markdown()
    assert len(refinement.write_charts(results, tmp_path)) == 2
    assert refinement.write_charts({"clips": {}}, tmp_path) == []


def carried(picture, way, background=(0.0, 0.0), thing=None, num_frames=8):
    """(frames, mask): a thing moves by `way`, the background by `background`, both (x, y) in pixels by the end."""
    thing = make_texture(9, 60)[:44] if thing is None else thing
    mask = np.zeros(SIZE[::-1], bool)
    top, left = (SIZE[1] - thing.shape[0]) // 2, (SIZE[0] - thing.shape[1]) // 2
    mask[top : top + thing.shape[0], left : left + thing.shape[1]] = True
    layer = np.zeros((*SIZE[::-1], 4), np.float32)
    layer[mask] = np.concatenate([thing.reshape(-1, 3), np.full((thing.size // 3, 1), 255)], axis=1)
    frames = []
    for share in np.linspace(0, 1, num_frames):
        shift = np.array([[1, 0, 60 - share * background[0]], [0, 1, 60 - share * background[1]]], float)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        behind = cv2.warpAffine(picture, shift, SIZE, flags=flags).astype(np.float32)
        moved = cv2.warpAffine(layer, np.array([[1, 0, share * way[0]], [0, 1, share * way[1]]], float), SIZE)
        alpha = moved[..., 3:] / 255
        frames.append(np.clip(moved[..., :3] * alpha + behind * (1 - alpha), 0, 255).astype(np.uint8))
    return np.stack(frames), mask


WAYS = {"left": (-45.0, 0.0), "right": (45.0, 0.0), "up": (0.0, -30.0), "down": (0.0, 30.0)}


@pytest.mark.parametrize("damage", (lambda f: f, lambda f: blurred(f, 1.2), noisy), ids=("clean", "blurred", "noisy"))
@pytest.mark.parametrize("direction", WAYS)
def test_a_moving_thing_is_followed(picture, direction, damage):
    frames, mask = carried(picture, WAYS[direction])
    motion = object_motion(damage(frames), mask)
    assert [name for name in DIRECTIONS if motion.goes(name)] == [direction], motion
    assert (motion.dx * SIZE[0], motion.dy * SIZE[1]) == pytest.approx(WAYS[direction], abs=3)
    assert motion.background < 0.25 * motion.length
    assert motion.moved < 0.05


def test_a_plain_thing_is_followed(picture):
    thing = np.full((40, 50, 3), (220, 30, 30), np.uint8)
    frames, mask = carried(picture, WAYS["right"], thing=thing)
    motion = object_motion(frames, mask)
    assert [name for name in DIRECTIONS if motion.goes(name)] == ["right"], motion


def test_a_thing_that_does_not_move_by_itself(picture):
    frames, mask = carried(picture, (0.0, 0.0))
    assert not any(object_motion(frames, mask).goes(name) for name in DIRECTIONS)
    # the whole picture goes left, the thing with it
    frames, mask = carried(picture, (-40.0, 0.0), background=(-40.0, 0.0))
    assert not any(object_motion(frames, mask).goes(name) for name in DIRECTIONS)
    # only the background goes left: against it the thing goes right, and the rest does not stay
    frames, mask = carried(picture, (0.0, 0.0), background=(-40.0, 0.0))
    motion = object_motion(frames, mask)
    assert [name for name in DIRECTIONS if motion.goes(name)] == ["right"]
    assert motion.background > 0.25 * motion.length
    assert motion.moved > 0.9


def test_a_part_of_the_rest_that_moves_along_is_seen(picture):
    frames, mask = carried(picture, WAYS["right"])
    taken = make_texture(12, 60)[:44]
    for index, frame in enumerate(frames):
        left = round(20 + 45 * index / (len(frames) - 1))
        frame[2:38, left : left + 60] = taken[:36]
    motion = object_motion(frames, mask)
    assert motion.goes("right")
    assert 0.1 < motion.moved < 0.4


def test_a_thing_that_vanishes_is_not_right(picture):
    frames, mask = carried(picture, WAYS["left"])
    gone = frames.copy()
    empty, _ = carried(picture, (0.0, 0.0), thing=np.ascontiguousarray(picture[100:144, 120:180]))
    gone[1:] = empty[1:]
    assert not object_motion(gone, mask).goes("left")
    assert object_motion(np.concatenate([frames[:1], noise(frames[0], "", 0)[1:]]), mask).method == "lost"
    with pytest.raises(ValueError, match="expected bool"):
        object_motion(frames, mask[:-1])
    with pytest.raises(ValueError, match="0 pixels"):
        object_motion(frames, np.zeros_like(mask))


def test_objects_report(photo, tmp_path):
    cutout = np.dstack([make_texture(7, 64)[:40], np.full((40, 64), 255, np.uint8)])
    things = [Thing(f"{noun}-0", noun, cutout, "right") for noun in ("bird", "fish", "car", "balloon")]
    items = [item for item in objects.plan({photo: ""}, things, 1) if item.thing.noun in ("bird", "balloon")]
    sides = {item.prompt: item.direction for item in items}

    def obedient(is_contrary):
        def move(image, prompt, seed):
            item = next(i for i in items if i.prompt == prompt)
            _, mask = objects.compose(Image.open(photo), item.thing, item.direction, SIZE, item.key)
            clean = np.asarray(center_crop_wide(Image.open(photo), SIZE))
            axis, sign = DIRECTIONS[sides[prompt]]
            way = np.zeros(2)
            way[axis] = (-sign if is_contrary else sign) * 0.3 * SIZE[axis]
            layer = np.dstack([image, 255 * mask.astype(np.uint8)]).astype(np.float32) * mask[..., None]
            frames = []
            for share in np.linspace(0, 1, len(TIMES)):
                matrix = np.array([[1, 0, share * way[0]], [0, 1, share * way[1]]], float)
                moved = cv2.warpAffine(layer, matrix, SIZE)
                alpha = moved[..., 3:] / 255
                frames.append((moved[..., :3] + clean * (1 - alpha)).clip(0, 255).astype(np.uint8))
            return np.stack(frames)

        return move

    cases = {
        "good": (obedient(False), [True, True]),
        "other": (obedient(True), [False, False]),
        "still": (still, [False, False]),
    }
    for name, (move, met) in cases.items():
        results = run_items("objects", items, lambda i, m=move: objects.work(i, FakeAnimator(m)), tmp_path / name, {})
        report = objects.report(results, [])
        assert report.num_errors == 0
        assert [bar.is_met for bar in report.bars] == met, report.to_markdown()


def test_composed_thing_has_room_for_its_way(photo):
    cutout = np.full((60, 30, 4), 255, np.uint8)
    for direction in ("left", "right", "up"):
        picture, mask = objects.compose(Image.open(photo), Thing("t", "car", cutout, "left"), direction, SIZE, "k")
        assert picture.shape == (128, 192, 3)
        assert mask.sum() == pytest.approx(54 * 27, rel=0.1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        free = {"left": columns[0] / 192, "right": 1 - columns[-1] / 192, "up": rows[0] / 128}[direction]
        assert free > AMOUNTS["object"]["normal"] - 0.05


def test_vae_report(photo, tmp_path):
    class Lossy(FakeAnimator):
        def reconstruct(self, frames, seed=None):
            return noisy(frames, 25)

    for name, animator, is_met in (("copy", FakeAnimator(still), True), ("lossy", Lossy(still), False)):
        items = reconstruction.plan({photo: ""})
        results = run_items("vae", items, lambda i, a=animator: reconstruction.work(i, a), tmp_path / name, {})
        assert [bar.is_met for bar in reconstruction.report(results, []).bars] == [is_met]
