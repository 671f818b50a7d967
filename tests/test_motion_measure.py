import io
import math
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.evaluate import fidelity, motion
from i2vgen.evaluate.motion import (
    DEAD_ZONE,
    EXPECTED_SIGNS,
    GlobalMotion,
    expected_sign,
    global_motion,
    mean_flow,
    motion_is_dominant,
    motion_is_right,
    peak_flow,
)
from i2vgen.evaluate.wordings import KIND_GROUPS
from moving_clips import HEIGHT, NUM_FRAMES, WIDTH, make_clip, make_texture

cv2 = pytest.importorskip("cv2")

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


@pytest.mark.parametrize("dx", (0.18, 0.32))
def test_flow_of_a_far_pan_is_not_lost(dx):
    assert mean_flow(make_clip(dx=dx)) == pytest.approx(dx, rel=0.25)


def test_peak_flow_sees_a_clip_that_comes_back():
    there = make_clip(dx=0.1)
    frames = np.concatenate([there, there[::-1]])
    assert mean_flow(frames) < 0.001
    assert peak_flow(frames) == pytest.approx(0.1, rel=0.15)
    assert peak_flow(there) == pytest.approx(mean_flow(there), rel=0.05)
    assert peak_flow(np.repeat(there[:1], 6, axis=0)) < 0.001


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
    for first, second in (KIND_GROUPS[group] for group in ("pans", "tilts", "zooms", "rolls")):
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
