"""Data and training: what a clip shows is what its caption says, and a resumed run equals an unbroken one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from i2vgen.data.captions import CAMERA_PHRASES
from i2vgen.data.motion import DURATION, ClipMaker, Move, render_camera, sample_camera
from i2vgen.data.pack import Pack
from i2vgen.evaluate.motion import global_motion
from i2vgen.train.checkpoints import saved_steps
from i2vgen.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig, load_config
from i2vgen.train.loop import fit
from i2vgen.train.tokenizer import train_tokenizer
from training_parts import DENOISER_TOML, MOTION_TOML, OBJECT_TOML, TOWERS_TOML, VAE_TOML, texture, write_config

TIMES = np.arange(16) / 8 / DURATION


@pytest.mark.parametrize(
    ("move", "component", "sign"),
    [
        (Move(pan=-0.18), "dx", 1),  # the camera goes left: content goes right
        (Move(pan=0.18), "dx", -1),
        (Move(tilt=-0.18), "dy", 1),
        (Move(tilt=0.18), "dy", -1),
        (Move(roll=np.radians(10)), "roll", -1),  # the camera turns clockwise: content turns the other way
    ],
)
def test_a_rendered_move_is_measured_as_meant(move: Move, component: str, sign: int) -> None:
    frames = render_camera(texture(400, 560), move, (128, 128), TIMES, np.random.default_rng(0))
    measured = getattr(global_motion(frames), component)
    expected = {"dx": abs(move.pan), "dy": abs(move.tilt), "roll": abs(np.degrees(move.roll))}[component]
    assert np.sign(measured) == sign
    assert abs(measured) == pytest.approx(expected, rel=0.15)


def test_zoom_in_makes_content_grow() -> None:
    image = texture(400, 560)
    inward = render_camera(image, Move(zoom=0.24), (128, 128), TIMES, np.random.default_rng(0))
    outward = render_camera(image, Move(zoom=-0.24), (128, 128), TIMES, np.random.default_rng(0))
    assert global_motion(inward).scale == pytest.approx(np.exp(0.24), rel=0.1)
    assert global_motion(outward).scale == pytest.approx(np.exp(-0.24), rel=0.1)


def test_too_small_a_photo_is_declined() -> None:
    assert render_camera(texture(40, 40), Move(pan=0.3), (128, 128), TIMES, np.random.default_rng(0)) is None


def test_mirrored_phrases_ask_for_mirrored_moves() -> None:
    for name, targets in (("pan-left", -1), ("pan-right", 1)):
        move, wanted = sample_camera(np.random.default_rng(1), [name])
        word = name.split("-")[1]
        assert np.sign(move.pan) == np.sign(wanted["pan"]) == targets
        assert all(word in phrase for phrase in CAMERA_PHRASES[name])
    assert not any("left" in p for p in CAMERA_PHRASES["pan-right"])
    assert not any("up" in p.split() for p in CAMERA_PHRASES["tilt-down"])


@pytest.mark.parametrize("kind", ["camera", "sprite", "ambient", "film"])
def test_a_clip_is_a_pure_function_of_its_generator(pack_dir: Path, kind: str) -> None:
    maker = ClipMaker(Pack(pack_dir), {kind: 1.0})
    first, second = (maker.make((96, 64), TIMES, np.random.default_rng(5)) for _ in range(2))
    assert first.frames.shape == (16, 64, 96, 3)
    assert first.caption == second.caption
    assert np.array_equal(first.frames, second.frames)
    assert not np.array_equal(first.frames, maker.make((96, 64), TIMES, np.random.default_rng(6)).frames)


def test_film_windows_stay_inside_their_shot(pack_dir: Path) -> None:
    maker = ClipMaker(Pack(pack_dir, "test"), {"film": 1.0})
    for seed in range(4):
        frames = maker.make((64, 64), TIMES, np.random.default_rng(seed)).frames
        brightness = frames.mean(axis=(1, 2, 3))
        assert brightness[0] > 70  # the other split ends at 79
        assert np.all(np.diff(brightness) > 0)


def test_film_frames_are_the_ones_asked_for(pack_dir: Path) -> None:
    values = Pack(pack_dir).film_frames(30, 5, 4).mean(axis=(1, 2, 3))
    assert values == pytest.approx([50, 54, 58, 62, 66], abs=2.5)


def test_config_names_the_unknown_key_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[optim]\nlearning_rat = 1e-3\n")
    with pytest.raises(ValueError, match=r"optim\.learning_rat.*did you mean optim\.learning_rate"):
        load_config(path)
    path.write_text("[optim]\nnum_steps = 'many'\n")
    with pytest.raises(ValueError, match=r"optim\.num_steps must be int, got 'many'"):
        load_config(path)
    path.write_text("task = 'vae'\n")
    config = load_config(path, ["optim.num_steps=7", "run.dir=somewhere"])
    assert (config.optim.num_steps, config.run.dir) == (7, "somewhere")
    with pytest.raises(ValueError, match="no file"):
        load_config(tmp_path / "missing.toml")


class LineTask:
    """Fits a line; everything it draws depends on the step alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        loss = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": loss.item()}

    def evaluate(self) -> dict[str, float]:
        return {"loss": self.loss(self.batch(10_000), 0)[1]["loss"]}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "line.pt")


def line_config(folder: Path, num_steps: int) -> TrainConfig:
    return TrainConfig(
        task="line",
        run=RunConfig(dir=str(folder), save_every=10, evaluate_every=20, log_every=5),
        data=DataConfig(),
        optim=OptimConfig(num_steps=num_steps, learning_rate=0.05, final_learning_rate=0.05, warmup_steps=2),
    )


def test_stop_and_resume_equals_never_stopped(tmp_path: Path) -> None:
    fit(LineTask(), line_config(tmp_path / "whole", 40))
    fit(LineTask(), line_config(tmp_path / "parts", 20))
    fit(LineTask(), line_config(tmp_path / "parts", 40))
    whole, parts = (torch.load(tmp_path / n / "export" / "line.pt", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_training_learns_and_logs(tmp_path: Path) -> None:
    fit(LineTask(), line_config(tmp_path, 200))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.01 * losses[0]
    assert records[-1]["step"] == 200
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["num_steps"] == 200


def test_a_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Broken(LineTask):
        def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float]]:
            loss, metrics = super().loss(batch, step)
            return (loss * float("nan") if step == 15 else loss), metrics

    with pytest.raises(RuntimeError, match="step 15"):
        fit(Broken(), line_config(tmp_path, 40))
    assert saved_steps(tmp_path) == [10]


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the camera pans left", "a red box moves right"] * 20, 600, 12, tmp_path)
    ids = tokenizer(["the camera pans left", "naïve ☃!"], padding="max_length", truncation=True).input_ids
    assert len(ids[0]) == len(ids[1]) == 12
    assert ids[0][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "the camera pans left"
    assert ids[0] != tokenizer(["the camera pans right"], padding="max_length", truncation=True).input_ids[0]


def test_every_stage_trains_and_exports(pack_dir: Path, tmp_path: Path) -> None:
    """VAE, towers, latents, motion prior, base and refiner, in the order of the recipe, a few steps each."""
    from i2vgen.train import cache
    from i2vgen.train.run import main

    def write(name: str, text: str, **values: object) -> str:
        return write_config(tmp_path, name, text, root=tmp_path, pack=pack_dir, **values)

    assert main([write("vae", VAE_TOML)]) == 0
    first = json.loads((tmp_path / "vae" / "log.jsonl").read_text().splitlines()[-1])
    assert first["val_psnr"] > 15  # the transform alone reconstructs even a noisy texture
    assert main([write("towers", TOWERS_TOML)]) == 0
    base = write("base", DENOISER_TOML, stage="base", last=999)
    assert cache.main([base]) == 0
    shard = load_file(next((tmp_path / "cache" / "train").glob("*.safetensors")))
    assert shard["latents"].shape[1:] == (16, 16, 8, 8)
    assert shard["latents"].float().std() == pytest.approx(1.0, abs=0.5)
    assert main([write("motion_prior", MOTION_TOML)]) == 0
    assert main([write("object_prior", OBJECT_TOML)]) == 0
    assert main([base]) == 0
    trained = load_file(tmp_path / "base" / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    told = load_file(tmp_path / "motion_prior" / "export" / "motion_prior.safetensors")
    assert torch.equal(trained["motion_prior.out.weight"], told["out.weight"])  # frozen
    assert trained["motion_prior.variances"].max() > 0
    refine = write("refine", DENOISER_TOML, stage="refine", last=599)
    assert main([refine, f"run.init_from={tmp_path}/base/export/unet"]) == 0
    assert (tmp_path / "refine" / "export" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
