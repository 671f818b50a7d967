"""LoRA: trained beside frozen weights, written in diffusers' layout, loaded, weighted, fused, and kept in settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import TINY_UNET, tiny_unet
from i2vgen.batch import model_identity
from i2vgen.checkpoints import CheckpointError
from i2vgen.checkpoints.adapters import ADAPTER_FILE, adapter_of, add_adapter, fit_adapter, open_adapter, write_adapter
from i2vgen.cli.sources import Lora, parse_loras
from i2vgen.media import read_settings
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.pipelines import CascadePipeline, load_cascade
from i2vgen.train.config import AdapterConfig, TrainConfig
from i2vgen.train.denoiser import DenoiserTask
from i2vgen.train.loop import fit
from i2vgen.train.lora import inject_adapter, target_names
from i2vgen.train.workers import Workers

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def inputs(num_frames: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "sample": (1, 4, num_frames, 8, 8),
        "image_latents": (1, 4, 8, 8),
        "image_embeddings": (1, 32),
        "encoder_hidden_states": (1, 5, 32),
    }
    return {
        **{name: torch.randn(shape, generator=draw) for name, shape in shapes.items()},
        "timestep": torch.tensor(500),
        "fps": torch.tensor([8]),
    }


@torch.no_grad()
def output(unet: torch.nn.Module, **changes: torch.Tensor) -> torch.Tensor:
    return unet(**inputs() | changes).sample


def near(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-5) -> bool:
    return bool(torch.allclose(a, b, atol=atol, rtol=1e-4))


def adapter_file(folder: Path, seed: int = 0, stage: str | None = "base", scale: float = 0.2, **fields) -> Path:
    """An adapter of the tiny UNets that changes what they do."""
    unet = tiny_unet(4)
    torch.manual_seed(seed)
    inject_adapter(unet, AdapterConfig(**{"rank": 3, **fields}))
    tensors = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for name, parameter in tensors.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return write_adapter(folder, *adapter_of(unet, "default"), stage)


@pytest.fixture(scope="module")
def base_file(tmp_path_factory) -> Path:
    return adapter_file(tmp_path_factory.mktemp("base"), alpha=6.0)


@pytest.fixture(scope="module")
def other_file(tmp_path_factory) -> Path:
    return adapter_file(tmp_path_factory.mktemp("other"), seed=1, rank=2, target_modules=["to_q", "proj_in", "conv1"])


@pytest.fixture(scope="module")
def refine_file(tmp_path_factory) -> Path:
    return adapter_file(tmp_path_factory.mktemp("refine"), seed=2, stage="refine")


def delta(file: Path, module: str = TO_Q) -> torch.Tensor:
    """What the adapter adds to a weight, from the file alone."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    down, up = tensors[f"unet.{module}.lora_A.weight"], tensors[f"unet.{module}.lora_B.weight"]
    return up @ down * settings["unet.lora_alpha"] / settings["unet.r"]


# Training


class FewClips:
    """The same two clips in every step."""

    def __init__(self, workers: Workers):
        draw = torch.Generator().manual_seed(3)
        self.empty_text = torch.randn(5, 32, generator=draw)
        self.clips = {
            "latents": torch.randn(2, 4, 2, 8, 8, generator=draw),
            "text": torch.randn(2, 5, 32, generator=draw),
            "image": torch.randn(2, 32, generator=draw),
            "fps": torch.tensor([8.0, 4.0]),
            "rows": torch.arange(2),
        }
        self.mine = workers.rows(2)

    def batch(self, step: int) -> dict:
        return {name: value[self.mine] for name, value in self.clips.items()}

    def held_out(self) -> None:
        return None

    def encoded(self, batch: dict) -> dict:
        return dict(batch)


@pytest.fixture
def training(tmp_path, monkeypatch):
    """training(steps, ...) -> a configuration and its task, on the tiny UNet of seed 4."""
    monkeypatch.setattr("i2vgen.train.denoiser.clip_source", lambda config, unet, levels, workers: FewClips(workers))
    tiny_unet(4).save_pretrained(tmp_path / "unet")

    def make(steps: int, folder: str = "run", stage: str = "base", **lora) -> tuple[TrainConfig, DenoiserTask]:
        config = TrainConfig(task="denoiser", lora=AdapterConfig(**{"rank": 4, "alpha": 8.0, **lora}))
        config.run.dir, config.run.init_from = str(tmp_path / folder), str(tmp_path / "unet")
        config.run.dtype, config.run.log_every, config.run.save_every = "float32", 1, 2
        config.optim.num_steps, config.optim.warmup_steps, config.optim.ema_decay = steps, 1, 0.5
        config.optim.learning_rate = config.optim.final_learning_rate = 1e-2
        config.denoiser.stage = stage
        config.denoiser.max_timestep = 599 if stage == "refine" else 999
        return config, DenoiserTask(config)

    return make


def fixed_loss(task: DenoiserTask) -> float:
    """Of some steps' noise, always the same."""
    task.model.eval()
    with torch.no_grad():
        losses = [task.loss(task.batch(step), step)[0].item() for step in range(100, 103)]
    task.model.train()
    return sum(losses) / len(losses)


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained():
    unet = tiny_unet(4)
    before, count = output(unet), sum(p.numel() for p in unet.parameters())
    inject_adapter(unet, AdapterConfig(rank=4, dropout=0.5))
    unet.eval()
    assert near(output(unet), before)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert sum(p.numel() for p in trained.values()) < 0.2 * count


@pytest.mark.parametrize("stage", ["base", "refine"])
def test_training_lowers_the_loss_and_exports_what_it_trained(training, stage):
    config, task = training(12, stage=stage)
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters() if not p.requires_grad}
    before = fixed_loss(task)
    fit(task, config)
    assert fixed_loss(task) < 0.98 * before
    now = dict(task.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    export = Path(config.run.dir) / "export"
    assert [file.name for file in export.iterdir()] == [ADAPTER_FILE]
    file = open_adapter(export)
    assert file.stage == stage
    # the exported average of the last steps does nearly what the trained weights do
    unet = tiny_unet(4)
    start = output(unet)
    add_adapter(fit_adapter(file, unet), unet, "trained")
    trained = output(task.model.eval())
    assert (output(unet) - trained).norm() < 0.3 * (trained - start).norm()


def test_a_run_goes_on_where_it_stopped_and_its_checkpoints_are_small(training, tmp_path):
    for steps, folder in ((4, "whole"), (2, "parts"), (4, "parts")):
        config, task = training(steps, folder)
        fit(task, config)
    whole, parts = (load_file(tmp_path / name / "export" / ADAPTER_FILE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    (folder,) = (tmp_path / "whole" / "checkpoints").glob("*4")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 0.8 * (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


def test_a_run_can_start_from_an_adapter(training, tmp_path, base_file):
    _, task = training(1, init_from=str(base_file), rank=3, alpha=6.0)  # the file's alpha is its rank
    unet = tiny_unet(4)
    add_adapter(fit_adapter(open_adapter(base_file), unet), unet, "x")
    assert near(output(task.model.eval()), output(unet))
    with pytest.raises(ValueError, match=r"lora\.init_from.*rank 3.*rank 5"):
        training(1, init_from=str(base_file), rank=5)


def test_targets_are_ends_of_names_or_patterns():
    unet = I2VGenXLUNet(**TINY_UNET, use_motion_prior=True)
    names = target_names(unet, ["to_q"])
    assert TO_Q in names
    assert all(name.endswith(".to_q") for name in names)
    temporal = target_names(unet, ["*temp_attentions*to_q"])
    assert temporal == [name for name in names if "temp_attentions" in name]
    assert not any(name.startswith("motion") for name in target_names(unet, ["*"]))
    with pytest.raises(ValueError, match=r"lora\.target_modules: 'to_qq'.*nearest known"):
        target_names(unet, ["to_q", "to_qq"])
    with pytest.raises(ValueError, match="names no layer"):  # over frames: the forward pass reads their weights
        target_names(unet, ["temp_convs.0.conv1.2"])


@pytest.mark.parametrize(
    ("lora", "message"),
    [({"rank": -1}, "rank above 0"), ({"dropout": 1.0}, "dropout"), ({"target_modules": []}, "at least one layer")],
)
def test_settings_out_of_range_are_refused(training, lora, message):
    with pytest.raises(ValueError, match=message):
        training(1, **lora)


TRAIN_SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import i2vgen.train.denoiser as denoiser
from i2vgen.train.config import AdapterConfig, TrainConfig
from i2vgen.train.loop import fit
from i2vgen.train.workers import start_workers, stop_workers
from test_lora import FewClips
denoiser.clip_source = lambda config, unet, levels, workers: FewClips(workers)
config = TrainConfig(task="denoiser", lora=AdapterConfig(rank=4))
config.run.dir, config.run.init_from, config.run.strategy = sys.argv[1], {unet!r}, sys.argv[2]
config.run.dtype, config.run.log_every, config.optim.num_steps = "float32", 1, 4
config.denoiser.model = {{"dropout": 0.0}}
workers = start_workers("cpu")
fit(denoiser.DenoiserTask(config, workers), config, workers)
stop_workers()
"""


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(tmp_path):
    tiny_unet(4).save_pretrained(tmp_path / "unet")
    script = tmp_path / "run.py"
    script.write_text(TRAIN_SCRIPT.format(tests=str(Path(__file__).parent), unet=str(tmp_path / "unet")))
    found = {}
    for strategy, processes in (("auto", 1), ("ddp", 2), ("fsdp", 2)):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
        folder = tmp_path / strategy
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [sys.executable, *launcher, script, folder, strategy], env=environment, check=True, capture_output=True
        )
        found[strategy] = load_file(folder / "export" / ADAPTER_FILE)
    assert found["auto"].keys() == found["ddp"].keys() == found["fsdp"].keys()
    for strategy in ("ddp", "fsdp"):
        assert all(near(found[strategy][key], value, 2e-4) for key, value in found["auto"].items())


# The file


def test_the_file_is_laid_out_as_diffusers_does(base_file):
    keys = list(load_file(base_file))
    assert all(key.startswith("unet.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    with safe_open(base_file, "pt") as file:
        header = file.metadata()
    settings = json.loads(header["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"], header["format"]) == (3, 3, "pt")


def test_diffusers_own_unet_loads_the_file_and_gains_the_same(base_file):
    class AdaptedUNet(DiffusersI2VGenXLUNet, PeftAdapterMixin):
        pass

    ours = tiny_unet(4, image_latents_scale=1.0)
    theirs = AdaptedUNet(**TINY_UNET).eval()
    theirs.load_state_dict(ours.state_dict())
    latents = inputs()["image_latents"].unsqueeze(2).expand(-1, -1, 3, -1, -1)  # the port wants every plane
    before = output(ours, image_latents=latents)
    assert near(output(theirs, image_latents=latents), before, 1e-4)
    add_adapter(fit_adapter(open_adapter(base_file), ours), ours, "x")
    theirs.load_lora_adapter(str(base_file), prefix="unet")
    after = output(ours, image_latents=latents)
    assert not near(after, before, 1e-2)
    assert near(output(theirs, image_latents=latents), after, 1e-4)


def renamed(file: Path, style: str) -> dict[str, torch.Tensor]:
    """The file's attention adapters in another layout, with its strength."""
    found = {}
    for key, value in load_file(file).items():
        module, _, half = key.removesuffix(".weight").removeprefix("unet.").rpartition(".lora_")
        if style == "kohya":
            name = "lora_unet_" + module.replace(".", "_")
            found[f"{name}.lora_{'down' if half == 'A' else 'up'}.weight"] = value if half == "A" else value / 2
            found[f"{name}.alpha"] = torch.tensor(6.0)
            continue
        if style == "peft":
            found[f"base_model.model.{module}.lora_{half}.weight"] = value
        elif style == "bare":
            found[f"{module}.lora_{half}.weight"] = value
        else:
            parent, _, leaf = module.removesuffix(".0").rpartition(".")
            found[f"unet.{parent}.processor.{leaf}_lora.{'down' if half == 'A' else 'up'}.weight"] = value
    return found


@pytest.mark.parametrize("style", ["kohya", "peft", "bare", "old diffusers"])
def test_other_layouts_are_read(base_file, style):
    expected, unet = tiny_unet(4), tiny_unet(4)
    add_adapter(fit_adapter(open_adapter(base_file), expected), expected, "x")
    add_adapter(fit_adapter(open_adapter(renamed(base_file, style)), unet), unet, "x")
    assert near(output(unet), output(expected))


def test_ranks_and_alphas_may_differ_by_module(base_file):
    tensors = {k: v for k, v in load_file(base_file).items() if TO_Q not in k}
    tensors |= {
        f"unet.{TO_Q}.lora_A.weight": torch.randn(5, 32),
        f"unet.{TO_Q}.lora_B.weight": torch.randn(32, 5),
    }
    adapter = fit_adapter(open_adapter(tensors), tiny_unet(4))
    assert (adapter.ranks[TO_Q], adapter.alphas[TO_Q]) == (5, 5)
    assert adapter.peft_settings()["rank_pattern"] == {f"^{TO_Q}": 5}
    unet = tiny_unet(4)
    start = unet.get_submodule(TO_Q).weight.clone()
    add_adapter(adapter, unet, "x")
    unet.fuse_lora()
    gained = unet.get_submodule(TO_Q).base_layer.weight - start
    assert near(gained, tensors[f"unet.{TO_Q}.lora_B.weight"] @ tensors[f"unet.{TO_Q}.lora_A.weight"])


def broken(tensors: dict, how: str) -> dict:
    a, b = f"unet.{TO_Q}.lora_A.weight", f"unet.{TO_Q}.lora_B.weight"
    if how == "shape":
        return tensors | {a: torch.zeros(3, 40)}
    if how == "half":
        return {key: value for key, value in tensors.items() if key != b}
    if how == "name":
        return {key.replace("to_q.", "to_quary."): value for key, value in tensors.items()}
    if how == "nan":
        return tensors | {a: torch.full((3, 32), torch.nan)}
    if how == "text":
        return tensors | {"text_encoder.text_model.q_proj.lora_A.weight": torch.zeros(3, 32)}
    if how == "dora":
        return tensors | {f"unet.{TO_Q}.lora_magnitude_vector": torch.zeros(32)}
    if how == "frames":
        name = "unet.down_blocks.0.temp_convs.0.conv1.2"
        return tensors | {f"{name}.lora_A.weight": torch.zeros(3, 32), f"{name}.lora_B.weight": torch.zeros(32, 3)}
    if how == "number":
        return tensors | {a: 1.0}
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", r"attn1\.to_q\.lora_A\.weight has shape \(3, 40\), this UNet needs \(3, 32\)"),
        ("half", "to_q.lora_A.weight is there without its other half"),
        ("name", r"to_quary.*nearest known: .*to_q"),
        ("nan", "NaN"),
        ("text", "text_encoder.*text towers are not supported"),
        ("dora", "lora_magnitude_vector is not part of a LoRA"),
        ("frames", "temp_convs.*no module"),
        ("number", "is no tensor"),
        ("empty", "holds no LoRA weights"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(base_file, tiny_cascade, how, message):
    before = list(tiny_cascade.unet.state_dict())
    with pytest.raises(CheckpointError, match=message):
        tiny_cascade.load_lora_weights(broken(load_file(base_file), how))
    assert list(tiny_cascade.unet.state_dict()) == before
    assert tiny_cascade.get_list_adapters() == {}


def test_damaged_missing_and_unclear_paths_are_refused(base_file, tmp_path, tiny_cascade):
    (tmp_path / "cut.safetensors").write_bytes(base_file.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    for path, message in (
        (tmp_path / "cut.safetensors", "cut.safetensors"),
        (tmp_path / "gone.safetensors", "does not exist"),
        (tmp_path / "empty", ADAPTER_FILE),
        (tmp_path, "several files"),
        (tmp_path / "a.safetensors", "x is not part of a LoRA"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tiny_cascade.load_lora_weights(path)
    with pytest.raises(TypeError, match=r"revison.*revision"):
        tiny_cascade.load_lora_weights(base_file, revison="main")


@pytest.mark.parametrize("settings", ["{", "[1]", '{"unet.use_dora": true}', '{"unet.lora_alpha": "6"}'])
def test_damaged_settings_in_the_header_are_refused(base_file, tmp_path, settings):
    save_file(load_file(base_file), tmp_path / "x.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(CheckpointError):
        fit_adapter(open_adapter(tmp_path / "x.safetensors"), tiny_unet(4))


# Pipelines


def base_latents(cascade: CascadePipeline, photo, **changes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return cascade.base(prompt="a dog", image=photo, output_type="latent", generator=generator, **changes).frames


def test_a_loaded_adapter_is_the_trained_one(base_file, cascade, photo, tmp_path):
    plain = base_latents(cascade, photo)
    assert cascade.base.load_lora_weights(base_file.parent, adapter_name="x") == "x"
    adapted = base_latents(cascade, photo)
    assert not near(adapted, plain, 1e-2)
    # saved again and loaded into the weights as they were
    saved = cascade.base.save_lora_weights(tmp_path, cascade.unet)
    cascade.base.unload_lora_weights()
    assert near(base_latents(cascade, photo), plain)
    assert cascade.get_active_adapters() == []
    cascade.base.load_lora_weights(saved)
    assert torch.equal(base_latents(cascade, photo), adapted)


def test_several_adapters_add_up_by_their_weights(base_file, other_file, cascade):
    start = cascade.unet.get_submodule(TO_Q).weight.clone()
    for name, file in (("a", base_file), ("b", other_file)):
        cascade.load_lora_weights(file, adapter_name=name)
    assert cascade.get_active_adapters() == ["a", "b"]
    cascade.set_adapters(["b", "a"], [0.5, -2.0])
    unfused = output(cascade.unet)
    cascade.fuse_lora()
    gained = cascade.unet.get_submodule(TO_Q).base_layer.weight - start
    assert near(gained, -2.0 * delta(base_file) + 0.5 * delta(other_file), 1e-6)
    assert near(output(cascade.unet), unfused, 1e-4)
    cascade.unfuse_lora()
    cascade.set_adapters("a")
    alone = tiny_unet(4)
    add_adapter(fit_adapter(open_adapter(base_file), alone), alone, "x")
    assert near(output(cascade.unet), output(alone), 1e-4)
    cascade.delete_adapters("a")
    assert cascade.get_list_adapters() == {"unet": ["b"]}
    assert cascade.get_active_adapters() == []
    assert near(output(cascade.unet), output(tiny_unet(4)), 1e-4)


def test_fusing_and_unfusing(base_file, cascade):
    plain = output(cascade.unet)
    cascade.load_lora_weights(base_file, adapter_name="x")
    adapted, weight = output(cascade.unet), cascade.unet.get_submodule(TO_Q).base_layer.weight.clone()
    cascade.set_adapters("x", 0.5)
    half = output(cascade.unet)
    cascade.set_adapters("x")
    cascade.fuse_lora(lora_scale=0.5)
    assert near(output(cascade.unet), half)
    for call in (
        cascade.fuse_lora,
        lambda: cascade.set_adapters("x", 2.0),
        lambda: cascade.load_lora_weights(base_file),
        lambda: cascade.delete_adapters("x"),
    ):
        with pytest.raises(ValueError, match="unfuse_lora"):
            call()
    cascade.unfuse_lora()
    assert (cascade.unet.get_submodule(TO_Q).base_layer.weight - weight).abs().max() < 1e-6
    assert near(output(cascade.unet), adapted)  # at its own weight again, not at the half of the fusion
    cascade.disable_lora()
    assert near(output(cascade.unet), plain)


def test_fused_weights_can_be_saved_as_a_model(base_file, cascade, photo, tmp_path):
    cascade.load_lora_weights(base_file)
    adapted = base_latents(cascade, photo)
    with pytest.raises(ValueError, match="save_pretrained: adapters are loaded"):
        cascade.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    cascade.fuse_lora()
    cascade.unload_lora_weights()
    (used,) = cascade.lora_settings()
    assert used["path"] == str(base_file)
    cascade.save_pretrained(tmp_path / "model")
    fresh = load_cascade(tmp_path / "model", device="cpu", dtype="float32")
    assert near(base_latents(fresh, photo), adapted, 1e-3)


def test_each_stage_gets_its_own(base_file, refine_file, cascade, photo):
    video = base_latents(cascade, photo)
    plain = cascade(photo, "a dog")
    cascade.load_lora_weights(refine_file)
    assert cascade.get_list_adapters() == {"refine_unet": ["default_0"]}
    assert torch.equal(base_latents(cascade, photo), video)
    refined = cascade(photo, "a dog")
    assert torch.equal(refined.base_latents, plain.base_latents)
    assert (refined.frames[0] != plain.frames[0]).any()
    with pytest.raises(ValueError, match="stage 'refine', this pipeline has base"):
        cascade.base.load_lora_weights(refine_file)
    cascade.refiner.unload_lora_weights()
    assert cascade.get_list_adapters() == {}
    cascade.load_lora_weights(base_file, stage="refine")
    assert cascade.refiner.get_active_adapters() == ["default_0"]
    assert cascade.base.get_active_adapters() == []
    settings = cascade(photo, "a dog", refine=False).settings[0]
    assert settings["lora"] == []


def test_dropout_of_training_is_off_in_a_pipeline(cascade, tmp_path):
    cascade.load_lora_weights(adapter_file(tmp_path, dropout=0.9))
    assert not any(module.training for module in cascade.unet.modules())
    assert torch.equal(output(cascade.unet), output(cascade.unet))


def test_bfloat16(base_file, tiny_cascade_dir, photo):
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="bfloat16")
    plain = base_latents(cascade, photo)
    cascade.load_lora_weights(base_file)
    assert {p.dtype for p in cascade.unet.parameters()} == {torch.bfloat16}
    assert not near(base_latents(cascade, photo), plain, 1e-2)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["x", "yy"], None, "adapter 'yy' is not loaded; nearest known: x"),
        (["x"], [1.0, 2.0], "2 weights for 1 adapters"),
        (["x"], [float("nan")], "weight of x"),
        ("x", "1", "weight of x"),
    ],
)
def test_set_adapters_refuses(base_file, cascade, names, weights, message):
    cascade.load_lora_weights(base_file, adapter_name="x")
    with pytest.raises(ValueError, match=message):
        cascade.set_adapters(names, weights)
    with pytest.raises(ValueError, match="'x' is in use"):
        cascade.load_lora_weights(base_file, adapter_name="x")
    with pytest.raises(ValueError, match="no dot"):
        cascade.load_lora_weights(base_file, adapter_name="x.y")


# The command line


def test_paths_and_weights(base_file, tmp_path):
    (tmp_path / "a:0.5").mkdir()
    texts = [f"{base_file}:0.7", str(base_file), "owner/name:-1", "C:/x", str(tmp_path / "a:0.5")]
    assert [(lora.path, lora.weight) for lora in parse_loras(texts)] == [
        (str(base_file), 0.7),
        (str(base_file), 1.0),
        ("owner/name", -1.0),
        ("C:/x", 1.0),
        (str(tmp_path / "a:0.5"), 1.0),
    ]
    assert parse_loras(None) == []
    for text in ("x:strong", ":1", "x:nan"):
        with pytest.raises(ValueError, match="--lora"):
            parse_loras([text])
    assert Lora("x").stage is None


def test_generate_keeps_adapters_and_again_restores_them(generate, run, base_file, refine_file, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(base_file.read_bytes())
    video, copy = tmp_path / "a.webp", tmp_path / "b.webp"
    assert generate(tmp_path / "plain.webp").code == 0
    result = generate(video, "--lora", f"{mine}:0.5", "--lora", refine_file)
    assert result.code == 0, result.err
    assert video.read_bytes() != (tmp_path / "plain.webp").read_bytes()
    kept = read_settings(video)["lora"]
    assert [(used["path"], used["weight"], used["stage"]) for used in kept] == [
        (str(mine), 0.5, "base"),
        (str(refine_file), 1.0, "refine"),
    ]
    assert run("again", video, "-o", copy).code == 0
    assert read_settings(copy) == read_settings(video)
    assert copy.read_bytes() == video.read_bytes()
    # gone, elsewhere, changed
    moved = mine.rename(tmp_path / "moved.safetensors")
    result = run("again", video, "-o", copy, "--force")
    assert (result.code, "mine.safetensors" in result.err) == (2, True)
    assert run("again", video, "-o", copy, "--force", "--lora", moved, "--lora", refine_file).code == 0
    save_file({k: 2 * v for k, v in load_file(moved).items()}, moved)
    result = run("again", video, "-o", copy, "--force", "--lora", moved, "--lora", refine_file)
    assert (result.code, "not the file of then" in result.err) == (2, True)
    result = run("again", video, "-o", copy, "--force", "--lora", moved)
    assert (result.code, "1 given" in result.err) == (2, True)


def test_preview_and_refine_take_adapters(run, photo_path, clip, tiny_cascade_dir, base_file, refine_file, tmp_path):
    common = ("--model", tiny_cascade_dir, "--device", "cpu")
    options = ("-o", tmp_path / "p", "--seeds", 1, "--lora", base_file, "--format", "webp", "--json", *common)
    result = run("preview", photo_path, "a dog", *options)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert f"--lora {base_file}" in document["next"]
    assert read_settings(tmp_path / "p" / "seed-00000.webp")["lora"][0]["path"] == str(base_file)
    result = run("refine", clip, "a dog", "-o", tmp_path / "r.webp", "--lora", refine_file, *common)
    assert result.code == 0, result.err
    assert read_settings(tmp_path / "r.webp")["lora"][0]["stage"] == "refine"
    assert run("again", tmp_path / "r.webp", "-o", tmp_path / "s.webp").code == 0
    assert (tmp_path / "s.webp").read_bytes() == (tmp_path / "r.webp").read_bytes()
    result = run("refine", clip, "a dog", "-o", tmp_path / "t.webp", "--lora", base_file, *common)
    assert (result.code, "base stage, which does not run here" in result.err) == (2, True)
    assert not (tmp_path / "t.webp").exists()


def test_a_batch_is_another_with_another_adapter(tiny_cascade_dir, base_file, other_file):
    model = str(tiny_cascade_dir)
    loras = [(), [(str(base_file), 1.0)], [(str(base_file), 0.5)], [(str(other_file), 1.0)]]
    assert len({model_identity(model, loras=one) for one in loras}) == len(loras)
    assert model_identity(model, loras=()) == model_identity(model)


def test_without_adapters_peft_is_not_needed(tiny_cascade, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "peft.tuners.tuners_utils", None)
    result = tiny_cascade(photo, "a dog runs", refine=False)
    assert result.settings[0]["lora"] == []
