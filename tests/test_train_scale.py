"""Training in several processes, after kills, and on fewer or more of them: the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from i2vgen.train import cache
from i2vgen.train.checkpoints import saved_steps
from i2vgen.train.config import load_config
from i2vgen.train.run import estimate, main
from i2vgen.train.workers import Workers, split_rows
from training_parts import DENOISER_TOML, MOTION_TOML, OBJECT_TOML, TOWERS_TOML, VAE_TOML, write_config

# equal batches for one process and two, nothing random that differs between processes
FIELDS = [
    "run.dtype=float32",
    "run.log_every=1",
    "run.save_every=2",
    "optim.batch_size=4",
    "denoiser.model.dropout=0.0",
]


@pytest.fixture(scope="module")
def base(pack_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration of a tiny base stage, with all that it starts from made."""
    root = tmp_path_factory.mktemp("training")

    def write(name: str, text: str, **values: object) -> str:
        return write_config(root, name, text, root=root, pack=pack_dir, **values)

    config = write("base", DENOISER_TOML, stage="base", last=999)
    assert main([write("vae", VAE_TOML)]) == 0
    assert main([write("towers", TOWERS_TOML)]) == 0
    assert cache.main([config, "data.num_clips=8"]) == 0
    assert main([write("motion_prior", MOTION_TOML)]) == 0
    assert main([write("object_prior", OBJECT_TOML)]) == 0
    return config


def train(config: str, folder: Path, steps: int, processes: int = 1, *fields: str, wait: bool = True):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "i2vgen.train", config, f"run.dir={folder}", f"optim.num_steps={steps}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [*command, *FIELDS, *fields], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if not wait:
        return process
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def losses(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in records if "loss" in r}


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def alone(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(base, folder, 4)
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(base: str, alone: Path, tmp_path: Path, strategy: str) -> None:
    train(base, tmp_path, 4, 2, f"run.strategy={strategy}")
    expected, found = losses(alone), losses(tmp_path)
    assert set(found) == {1, 2, 3, 4}
    assert found == pytest.approx(expected, rel=1e-5)
    weights = exported(alone)
    for name, tensor in exported(tmp_path).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_run_goes_on_in_another_number_of_processes(base: str, alone: Path, tmp_path: Path) -> None:
    train(base, tmp_path, 2, 2, "run.strategy=fsdp")
    assert saved_steps(tmp_path) == [2]
    train(base, tmp_path, 4)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)


def test_killed_and_started_again_is_never_stopped_to_the_bit(base: str, alone: Path, tmp_path: Path) -> None:
    process = train(base, tmp_path, 4, 1, wait=False)
    deadline = time.monotonic() + 120
    while not saved_steps(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert saved_steps(tmp_path)[0] == 2
    train(base, tmp_path, 4)
    weights = exported(alone)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(tmp_path).items())


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(base: str, alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "i2vgen.train", base, f"run.dir={tmp_path}", "optim.num_steps=4", *FIELDS]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    deadline = time.monotonic() + 120
    while not saved_steps(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=300) == 0
    assert losses(tmp_path)[4] == pytest.approx(losses(alone)[4], rel=1e-5)


def test_sigterm_saves_and_exports(base: str, tmp_path: Path) -> None:
    process = train(base, tmp_path, 100_000, 1, "run.save_every=100000", wait=False)
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").is_file() or not losses(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert saved_steps(tmp_path) == [max(losses(tmp_path))]
    assert exported(tmp_path)


def test_accumulation_changes_nothing(base: str, alone: Path, tmp_path: Path) -> None:
    train(base, tmp_path, 2, 1, "optim.accumulation=2")
    found, expected = losses(tmp_path), losses(alone)
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-5)


def test_an_unfinished_checkpoint_does_not_count(alone: Path, tmp_path: Path) -> None:
    assert saved_steps(alone) == [2, 4]
    (tmp_path / "checkpoints" / ".step-0000006").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-0000004").mkdir()
    assert saved_steps(tmp_path) == []


def test_another_model_is_refused(base: str, alone: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [base, f"run.dir={alone}", "optim.num_steps=5", "denoiser.model.block_out_channels=[32, 64]"]
    assert main(arguments) == 2
    assert "use another run.dir" in capsys.readouterr().err
    assert saved_steps(alone) == [2, 4]


def test_a_dry_run_estimates_and_leaves_nothing(base: str, tmp_path: Path) -> None:
    config = load_config(base, [f"run.dir={tmp_path / 'dry'}", "optim.num_steps=1000", *FIELDS])
    found = estimate(config)
    assert not (tmp_path / "dry").exists()
    assert found.parameters > 100_000
    assert found.frozen > 0
    assert found.hours == pytest.approx(1000 * found.seconds_per_step / 3600)
    assert 1e8 < found.memory_bytes < 1e11
    assert "about" in str(found)


def test_samples_are_written(base: str, tmp_path: Path) -> None:
    fields = ["run.sample_every=1", "denoiser.num_samples=2", "denoiser.sample_steps=2", "denoiser.sample_guidance=2"]
    assert main([base, f"run.dir={tmp_path}", "optim.num_steps=1", *FIELDS, *fields]) == 0
    folder = tmp_path / "samples" / "step-0000001"
    assert len(list(folder.glob("*.mp4"))) == 2
    assert (folder / "sheet.png").is_file()
    assert list((tmp_path / "tensorboard").iterdir())


def test_rows_are_shared_evenly() -> None:
    shares = [Workers(rank=r, count=3).rows(6) for r in range(3)]
    assert [i for s in shares for i in range(6)[s]] == list(range(6))
    with pytest.raises(ValueError, match=r"optim\.batch_size.*3 processes"):
        Workers(count=3).rows(4)


def test_parts_of_a_batch_cover_it() -> None:
    batch = {"x": torch.arange(5), "names": list("abcde")}
    parts = split_rows(batch, 2)
    assert torch.equal(torch.cat([p["x"] for p, _ in parts]), batch["x"])
    assert "".join("".join(p["names"]) for p, _ in parts) == "abcde"
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert len(split_rows(batch, 1)) == 1
