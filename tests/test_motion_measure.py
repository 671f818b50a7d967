import io
import json
import math
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.evaluate import fidelity, motion, suite, summary
from i2vgen.evaluate.motion import (
    DEAD_ZONE,
    EXPECTED_SIGNS,
    GlobalMotion,
    expected_sign,
    global_motion,
    mean_flow,
    motion_is_dominant,
    motion_is_right,
)

cv2 = pytest.importorskip("cv2")

HEIGHT, WIDTH, NUM_FRAMES = 128, 192, 10
STILL = {"dx": 0.0, "dy": 0.0, "scale": 1.0, "roll": 0.0, "residual": 0.0, "inlier_share": 0.9}
# kind -> what the content does over the clip
TRUTHS = {
    "pan-left": {"dx": 0.12},
    "pan-right": {"dx": -0.05},
    "tilt-up": {"dy": 0.06},
    "tilt-down": {"dy": -0.12},
    "zoom-in": {"scale": 1.25},
    "zoom-out": {"scale": 0.85},
    "roll-clockwise": {"roll": -6.0},
    "roll-counterclockwise": {"roll": 8.0},
}


def make_texture(seed=0, side=480):
    """Smooth colour noise at several sizes plus rectangles, `(side side 3)` uint8."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((side, side, 3), np.float32)
    for cells in (6, 15, 40, 90):
        layer = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        texture += cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC)
    texture = 128 + 25 * texture
    for x, y, w, h in rng.integers([0, 0, 15, 15], [side, side, 70, 70], size=(40, 4)):
        texture[y : y + h, x : x + w] += rng.uniform(-70, 70, 3)
    return np.clip(texture, 0, 255).astype(np.uint8)


def make_clip(dx=0.0, dy=0.0, scale=1.0, roll=0.0, num_frames=NUM_FRAMES, seed=0):
    """Content that ends up moved right and down, `scale` times as large and turned clockwise by `roll`."""
    texture = cv2.GaussianBlur(make_texture(seed), (0, 0), 0.8)
    middle = (texture.shape[0] - 1) / 2
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    frames = []
    for share in np.linspace(0, 1, num_frames):
        angle, size = math.radians(roll * share), 0.6 * scale**share
        turn = size * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        offset = centre + share * np.array([dx * WIDTH, dy * HEIGHT]) - turn @ [middle, middle]
        matrix = np.hstack([turn, offset[:, None]])
        frames.append(cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR))
    return np.stack(frames)


def blur(frames):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames])


def encode_h264(frames):
    """The clip after H.264 at a low quality."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "32"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def add_noise(frames):
    noise = np.random.default_rng(5).normal(0, 6, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


DAMAGES = {"clean": lambda frames: frames, "blurred": blur, "h264": encode_h264, "noisy": add_noise}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", TRUTHS)
def test_known_motion_is_measured(kind, damage):
    measured = global_motion(DAMAGES[damage](make_clip(**TRUTHS[kind])))
    truth = GlobalMotion(**(STILL | TRUTHS[kind]))
    (component,) = TRUTHS[kind]
    assert measured.signed(component) == pytest.approx(truth.signed(component), rel=0.1)
    for other in {"dx", "dy", "scale", "roll"} - {component}:
        assert abs(measured.signed(other)) < DEAD_ZONE[other]
    assert motion_is_right(kind, measured)
    assert motion_is_dominant(kind, measured)
    right = [name for name in EXPECTED_SIGNS if motion_is_right(name, measured)]
    assert right == [kind]


def test_combined_motion_is_taken_about_the_centre():
    measured = global_motion(make_clip(dx=0.06, dy=-0.05, scale=1.12, roll=5.0))
    assert measured.dx == pytest.approx(0.06, rel=0.1)
    assert measured.dy == pytest.approx(-0.05, rel=0.1)
    assert math.log(measured.scale) == pytest.approx(math.log(1.12), rel=0.1)
    assert measured.roll == pytest.approx(5.0, rel=0.1)


def test_large_frames_are_measured_in_the_same_units():
    frames = make_clip(dx=0.12)
    enlarged = np.stack([cv2.resize(frame, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for frame in frames])
    assert global_motion(enlarged).dx == pytest.approx(0.12, rel=0.1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_static_clip_moves_nowhere(damage):
    frames = DAMAGES[damage](make_clip())
    measured = global_motion(frames)
    assert max(measured.strengths().values()) < 0.003
    assert [kind for kind in EXPECTED_SIGNS if motion_is_right(kind, measured)] == ["static"]
    assert mean_flow(frames) < 0.005


@pytest.mark.parametrize("sigma", (0, 2))
def test_noise_is_never_right(sigma):
    noise = np.random.default_rng(1).normal(size=(NUM_FRAMES, HEIGHT, WIDTH, 3)).astype(np.float32)
    if sigma:
        noise = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in noise])
    frames = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    measured = global_motion(frames)
    assert not any(motion_is_right(kind, measured) for kind in EXPECTED_SIGNS)


def test_blank_clip_is_never_right():
    measured = global_motion(np.full((4, 64, 64, 3), 90, np.uint8))
    assert measured.inlier_share == 0
    assert not measured.is_measured
    assert not any(motion_is_right(kind, measured) for kind in EXPECTED_SIGNS)


def test_spoilt_frame_is_bridged():
    frames = make_clip(dx=0.12)
    frames[3] = 0
    measured = global_motion(frames)
    assert measured.dx == pytest.approx(0.12, rel=0.1)
    assert measured.inlier_share > 0.5


def test_moving_subject_does_not_move_the_camera():
    frames = make_clip(dx=-0.06)
    subject = make_texture(seed=9, side=50)
    for index, frame in enumerate(frames):
        frame[40:90, 20 + 8 * index : 70 + 8 * index] = subject
    assert global_motion(frames).dx == pytest.approx(-0.06, rel=0.1)


def test_mean_flow_is_a_share_of_the_width():
    assert mean_flow(make_clip(dx=0.05)) == pytest.approx(0.05, rel=0.15)


def test_motion_rejects_wrong_input():
    with pytest.raises(ValueError, match="float32"):
        global_motion(np.zeros((3, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="2 frames"):
        mean_flow(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="'dolly'"):
        motion_is_right("dolly", GlobalMotion(**STILL))


def test_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"i2vgen\[evaluate\]"):
        motion.mean_flow(np.zeros((2, 64, 64, 3), np.uint8))


def test_dead_zone_and_dominance():
    barely = GlobalMotion(**(STILL | {"dx": 0.009}))
    assert not motion_is_right("pan-left", barely)
    assert motion_is_right("static", barely)
    mixed = GlobalMotion(**(STILL | {"dx": 0.03, "dy": -0.1}))
    assert motion_is_right("pan-left", mixed)
    assert not motion_is_dominant("pan-left", mixed)
    assert motion_is_dominant("tilt-down", mixed)
    lost = GlobalMotion(**(STILL | {"dx": 0.2, "inlier_share": 0.05}))
    assert not motion_is_right("pan-left", lost)


def test_opposite_kinds_ask_for_opposite_signs():
    for first, second in (suite.KIND_GROUPS[group] for group in ("pans", "tilts", "zooms", "rolls")):
        assert expected_sign(first)[0] == expected_sign(second)[0]
        assert expected_sign(first)[1] == -expected_sign(second)[1]


def test_psnr_known_values():
    black = np.zeros((2, 16, 16, 3), np.uint8)
    assert fidelity.psnr(black, black) == math.inf
    assert fidelity.psnr(black, black + 255) == pytest.approx(0.0)
    assert fidelity.psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
    zeros = torch.zeros(1, 3, 2, 16, 16)
    assert fidelity.psnr(zeros, zeros + 0.2) == pytest.approx(20.0, abs=1e-4)
    as_float = torch.from_numpy(black).permute(0, 3, 1, 2) / 127.5 - 1
    assert fidelity.psnr(as_float, black + 1) == pytest.approx(20 * math.log10(255), rel=1e-5)


def test_ssim_known_values():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    assert fidelity.ssim(picture, picture) == pytest.approx(1.0)
    assert fidelity.ssim(picture, 255 - picture) < -0.5
    dark, bright = np.full((12, 12, 3), 51, np.uint8), np.full((12, 12, 3), 204, np.uint8)
    assert fidelity.ssim(dark, bright) == pytest.approx((2 * 0.2 * 0.8 + 1e-4) / (0.04 + 0.64 + 1e-4))


def test_ssim_of_one_window_from_its_definition():
    rng = np.random.default_rng(3)
    first, second = rng.uniform(-1, 1, (2, 1, 11, 11))
    x, y = (first[0] + 1) / 2, (second[0] + 1) / 2
    grid = np.arange(-5, 6)
    weights = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    assert fidelity.ssim(first, second) == pytest.approx(expected)


def test_fidelity_rejects_wrong_input():
    small = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        fidelity.psnr(small, np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="clamp"):
        fidelity.psnr(torch.full((3, 8, 8), 200.0), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="int64"):
        fidelity.psnr(small.astype(np.int64), small)
    with pytest.raises(ValueError, match="11 pixels"):
        fidelity.ssim(small, small)


def test_first_frame_psnr_crops_the_input():
    picture = Image.fromarray(make_texture(side=200))
    frames = np.stack([np.asarray(picture.crop((0, 50, 200, 150)))] * 2)
    assert fidelity.first_frame_psnr(frames, picture) > 40
    assert fidelity.first_frame_psnr(255 - frames, picture) < 15


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        Image.fromarray(make_texture(index, side=150)).save(folder / name)
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"file": "test/a.png", "caption": "a red barn"}) + "\n")
    return suite.find_photos(folder, captions)


def obedient(photo: Path, prompt: str, seed: int) -> np.ndarray:
    """Pans right whenever the prompt says so, else pans left."""
    return make_clip(dx=-0.1 if "right" in prompt else 0.1, num_frames=4, seed=seed)


def test_wordings_cover_every_kind_and_do_not_overlap():
    assert suite.WORDINGS.keys() == suite.HELD_OUT_WORDINGS.keys() == EXPECTED_SIGNS.keys()
    assert set(sum(suite.KIND_GROUPS.values(), ())) == EXPECTED_SIGNS.keys()
    texts = [text for table in (suite.WORDINGS, suite.HELD_OUT_WORDINGS) for row in table.values() for text in row]
    assert len(texts) == len(set(texts))


def test_plan_is_stable_and_complete(photos):
    kinds = suite.expand_kinds(["pans", "pan-left", "static"])
    assert kinds == ["pan-left", "pan-right", "static"]
    items = suite.plan_items(photos, kinds, num_seeds=2)
    assert len({item.key for item in items}) == len(items) == 2 * 3 * 2 * 2
    assert items[0].prompt.startswith("a red barn, ")
    assert items[-1].prompt in suite.HELD_OUT_WORDINGS["static"]
    without_a = suite.plan_items(dict(list(photos.items())[1:]), kinds, num_seeds=2)
    assert without_a == [item for item in items if item.photo.name == "b.png"]
    with pytest.raises(ValueError, match="'dollies'"):
        suite.expand_kinds(["dollies"])
    with pytest.raises(ValueError, match="wordings='all'"):
        suite.plan_items(photos, kinds, 1, wordings="all")


def test_run_resumes_and_records_errors(photos, tmp_path):
    items = suite.plan_items(photos, ["pan-left", "pan-right"], num_seeds=1, wordings="seen")
    path, settings = tmp_path / "out" / "motion.json", {"model": "fake"}
    calls = []

    def breaks_on_b(photo, prompt, seed):
        calls.append(photo.name)
        if photo.name == "b.png":
            raise RuntimeError("no memory")
        return obedient(photo, prompt, seed)

    first = suite.run_suite(breaks_on_b, items, path, settings)
    assert calls == ["a.png", "a.png", "b.png", "b.png"]
    assert first["clips"]["b.png/pan-left/0"]["error"] == "RuntimeError: no memory"
    assert json.loads(path.read_text()) == first
    assert summary.summarize(first)["num_errors"] == 2
    assert "Clips that failed: 2" in summary.to_markdown(summary.summarize(first))

    calls.clear()

    def counted(photo, prompt, seed):
        calls.append(photo.name)
        return obedient(photo, prompt, seed)

    second = suite.run_suite(counted, items, path, settings)
    assert calls == ["b.png", "b.png"]
    assert second["clips"]["a.png/pan-left/0"] == first["clips"]["a.png/pan-left/0"]
    assert all(clip["is_right"] for clip in second["clips"].values())
    with pytest.raises(ValueError, match="choose another folder"):
        suite.run_suite(counted, items, path, {"model": "other"})


def test_interrupted_run_keeps_finished_clips(photos, tmp_path):
    items = suite.plan_items(photos, ["pan-left"], num_seeds=1, wordings="seen")
    path = tmp_path / "motion.json"

    def stops_at_b(photo, prompt, seed):
        if photo.name == "b.png":
            raise KeyboardInterrupt
        return obedient(photo, prompt, seed)

    with pytest.raises(KeyboardInterrupt):
        suite.run_suite(stops_at_b, items, path, {})
    assert list(json.loads(path.read_text())["clips"]) == ["a.png/pan-left/0"]


def fake_clip(kind, is_right, is_held_out=False, flow=0.1, **change):
    return {
        "kind": kind,
        "is_held_out": is_held_out,
        "is_right": is_right,
        "is_dominant": is_right,
        "is_measured": True,
        "motion": STILL | change,
        "mean_flow": flow,
        "first_frame_psnr": 30.0,
        "seconds": 2.0,
    }


def test_summary_of_fake_results():
    clips = [
        fake_clip("pan-left", True, dx=0.2),
        fake_clip("pan-left", False, dx=-0.1),
        fake_clip("pan-left", True, is_held_out=True, dx=0.2),
        fake_clip("zoom-out", True, scale=0.8),
        fake_clip("static", True, flow=0.01),
        {"error": "RuntimeError: no"},
    ]
    result = summary.summarize({"clips": dict(enumerate(clips))})
    pan, zoom, static, moving = result["rows"]
    assert (pan["kind"], pan["num_clips"], pan["right_seen"], pan["right_held_out"]) == (
        "pan-left",
        3,
        0.5,
        1.0,
    )
    assert pan["wanted"] == pytest.approx(0.1)
    assert zoom["right_held_out"] is None
    assert zoom["wanted"] == pytest.approx(math.log(0.8))
    assert static["wanted"] is None
    assert (moving["kind"], moving["num_clips"]) == ("all moving", 4)
    assert moving["right_seen"] == pytest.approx(2 / 3)
    assert result["static_ratio"] == pytest.approx(0.1)
    assert result["num_errors"] == 1
    table = summary.to_markdown(result)
    assert "| pan-left | 3 | 50 % | 100 % | 67 % | dx +10.0 % | 10.0 | 30.0 | 2.0 |" in table
    assert "scale x0.800" in table
    assert "0.10" in table.split("Static ratio")[1]
    assert summary.summarize({"clips": {}})["static_ratio"] is None
