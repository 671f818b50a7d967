"""Conversions there and back: bit by bit, within little memory, and all or nothing."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

import model_folders as mf
from conftest import seeded
from i2vgen.checkpoints import CheckpointError, load_unet
from i2vgen.checkpoints import convert as convert_module
from i2vgen.checkpoints.configs import SOURCES
from i2vgen.checkpoints.convert import convert
from i2vgen.checkpoints.detect import detect, variant_of_source
from i2vgen.checkpoints.reading import open_tensors
from i2vgen.checkpoints.writing import write_vgen_pth
from i2vgen.models.unet import I2VGenXLUNet

FOREIGN = [source for source in SOURCES if source != "diffusers"]


def content(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as tensors:
        return {key: tensors.read(key).clone() for key in tensors}


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype
        assert torch.equal(value, second[key]), key


def vgen_file(path: Path, source: str = "vgen-i2vgen-xl") -> Path:
    mf.write_unet(path, source)
    return path


@pytest.mark.parametrize("source", FOREIGN)
def test_round_trip_is_bit_identical(tmp_path, source):
    unet = mf.tiny_unet(source)
    unet.save_pretrained(tmp_path / "first")
    result = convert(tmp_path / "first", tmp_path / "middle.pth", to="vgen")
    assert result.networks == {"unet": detect(tmp_path / "middle.pth").num_tensors}
    assert_equal(content(tmp_path / "middle.pth"), mf.original_unet(unet))
    convert(tmp_path / "middle.pth", tmp_path / "last", source=source)
    assert_equal(content(tmp_path / "first"), content(tmp_path / "last"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "last")]
    assert configs[0] == configs[1]
    assert detect(tmp_path / "last").variant == variant_of_source(source)


def test_a_converted_folder_is_what_load_unet_gives(tmp_path):
    file = vgen_file(tmp_path / "a.pth")
    convert(file, tmp_path / "unet")
    ours, loaded = load_unet(file), I2VGenXLUNet.from_pretrained(tmp_path / "unet")
    assert_equal(ours.state_dict(), loaded.state_dict())
    as_saved = [json.loads(unet.to_json_string()) for unet in (ours, loaded)]
    assert as_saved[0] == {key: value for key, value in as_saved[1].items() if key != "_name_or_path"}


def test_step_dtype_and_shards_are_kept(tmp_path):
    state = mf.original_unet(mf.tiny_unet("vgen-i2vgen-xl"))
    torch.save({"state_dict": {key: value.half() for key, value in state.items()}, "step": 854500}, tmp_path / "a.pth")
    seen = []
    result = convert(
        tmp_path / "a.pth", tmp_path / "unet", max_shard_size="200KB", progress=lambda *now: seen.append(now)
    )
    files = sorted(path.name for path in (tmp_path / "unet").iterdir())
    assert "diffusion_pytorch_model.safetensors.index.json" in files
    assert len(files) > 5
    found = detect(tmp_path / "unet")
    assert (found.step, found.dtypes) == (854500, {"float16": found.num_tensors})
    convert(tmp_path / "unet", tmp_path / "b.pth", to="vgen")
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    assert again["step"] == 854500
    assert_equal(again["state_dict"], {key: value.half() for key, value in state.items()})

    for stage in ("convert", "verify"):
        done = [now for name, now, total in seen if name == stage]
        assert done == sorted(done)
        assert done[-1] == result.size == seen[0][2]


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "float32"])
def test_dtype_of_the_result(tmp_path, dtype):
    file = vgen_file(tmp_path / "a.pth")
    convert(file, tmp_path / "unet", dtype=dtype)
    chosen = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    expected = {key: value.to(chosen) for key, value in load_unet(file).state_dict().items()}
    assert_equal(content(tmp_path / "unet"), expected)


def test_vae_and_towers(tmp_path):
    mf.write_vae(tmp_path / "v2-1_512-ema-pruned.ckpt")
    result = convert(tmp_path / "v2-1_512-ema-pruned.ckpt", tmp_path / "sd")
    assert result.networks.keys() == {"vae"}
    assert "image UNet" in result.left_out[0]
    loaded, info = AutoencoderKL.from_pretrained(tmp_path / "sd" / "vae", output_loading_info=True)
    assert not any(info.values())
    assert_equal(loaded.state_dict(), mf.tiny_vae().state_dict())
    convert(tmp_path / "sd" / "vae", tmp_path / "back.ckpt", to="vgen")
    original = content(tmp_path / "v2-1_512-ema-pruned.ckpt")
    assert_equal(
        content(tmp_path / "back.ckpt"), {k: v for k, v in original.items() if k.startswith("first_stage_model.")}
    )

    mf.write_open_clip(tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(mf.OPEN_CLIP_CONFIG))
    result = convert(tmp_path / "open_clip_pytorch_model.bin", tmp_path / "clip")
    assert set(result.networks) == {"text_encoder", "image_encoder"}
    for name, cls, tower in (
        ("text_encoder", CLIPTextModel, mf.tiny_text_tower()),
        ("image_encoder", CLIPVisionModelWithProjection, mf.tiny_image_tower()),
    ):
        loaded, info = cls.from_pretrained(tmp_path / "clip" / name, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_equal(loaded.state_dict(), tower.state_dict())


def test_whole_folders(tmp_path):
    for build, variant in (
        (mf.image2video_folder, "image2video"),
        (mf.video2video_folder, "vid2vid-xl"),
        (mf.vgen_folder, ""),
    ):
        folder = build(tmp_path / build.__name__)
        target = tmp_path / f"{build.__name__}-converted"
        found = detect(folder)
        assert found.kind in ("modelscope", "vgen")
        assert variant in found.variant
        result = convert(folder, target)
        index = json.loads((target / "model_index.json").read_text())
        parts = {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
        assert parts == {path.name for path in target.iterdir() if path.is_dir()}
        assert set(result.networks) == {name for name in parts if "unet" in name or name == "vae" or "encoder" in name}
        assert (detect(target).kind, detect(target).variant) == ("pipeline", found.variant)
        DiffusionPipeline.load_config(target)
        with pytest.raises(CheckpointError, match="says so itself"):
            convert(folder, tmp_path / "other", source="vgen-sr600")
    # the last was VGen's, with a base stage and a refiner
    result = convert(target, tmp_path / "base.pth", to="vgen")
    assert {part.split()[0] for part in result.left_out} == parts & {
        "refine_unet",
        "vae",
        "text_encoder",
        "image_encoder",
    }
    assert_equal(content(tmp_path / "base.pth"), content(next(folder.glob("i2vgen_xl_*.pth"))))


def test_a_hub_folder_in_another_dtype(tmp_path):
    folder = mf.hub_folder(tmp_path / "hub", max_shard_size="1MB")
    convert(folder, tmp_path / "half", dtype="float16")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".json", ".txt")}
    assert {name for name in files if ".index." not in name} <= {
        str(path.relative_to(tmp_path / "half")) for path in (tmp_path / "half").rglob("*")
    }
    halves = {key: value.half() for key, value in content(folder / "unet").items()}
    assert_equal(content(tmp_path / "half" / "unet"), halves)


def test_ambiguous_refiners_need_the_source(tmp_path):
    file = vgen_file(tmp_path / "weights.pth", "vgen-sr600")
    with pytest.raises(CheckpointError, match=r"vgen-sr600.*modelscope-vid2vid.*--source"):
        convert(file, tmp_path / "unet")
    for source, has_edits in (("vgen-sr600", True), ("modelscope-vid2vid", False)):
        convert(file, tmp_path / "unet", source=source, force=True)
        assert json.loads((tmp_path / "unet" / "config.json").read_text())["use_decoder_edits"] == has_edits
    with pytest.raises(CheckpointError, match="source 'sr601' is unknown"):
        convert(file, tmp_path / "x", source="sr601")
    with pytest.raises(CheckpointError, match="other heads"):
        convert(file, tmp_path / "x", source="vgen-i2vgen-xl")


# What stops a conversion


def changed(file: Path, change) -> Path:
    document = torch.load(file, weights_only=True)
    change(document["state_dict"])
    torch.save(document, file)
    return file


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: s.pop("out.2.bias"), r"missing key out\.2\.bias"),
        (lambda s: s.update({"out.2.bais": torch.ones(4)}), r"unknown key out\.2\.bais; nearest known: out\.2\.bias"),
        (lambda s: s.update({"out.2.bias": torch.ones(5)}), r"out\.2\.bias has shape \[5\], expected \[4\]"),
        (
            lambda s: s.update({"out.2.bias": torch.ones(4, dtype=torch.int64)}),
            r"out\.2\.bias: weights are torch\.int64",
        ),
        (lambda s: s["out.2.bias"].fill_(float("nan")), r"out\.2\.bias \(conv_out\.bias in the result\): holds NaN"),
        (
            lambda s: s["out.2.bias"].fill_(1e6),
            r"out\.2\.bias \(conv_out\.bias in the result\): its largest value 1e\+06",
        ),
    ],
)
def test_bad_weights_leave_nothing(tmp_path, change, said):
    file = changed(vgen_file(tmp_path / "a.pth"), change)
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{said}"):
        convert(file, tmp_path / "deep" / "unet", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_bad_weights_of_ours_are_named_as_they_are_on_the_way_back(tmp_path):
    unet = mf.tiny_unet("vgen-i2vgen-xl")
    torch.nn.init.constant_(unet.conv_out.bias, float("inf"))
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(CheckpointError, match=r"conv_out\.bias \(out\.2\.bias in the result\): holds NaN or infinity"):
        convert(tmp_path / "unet", tmp_path / "a.pth", to="vgen")


def test_a_model_saved_inside_parallel_training_converts_as_any(tmp_path):
    def wrap(state):
        state.update({f"module.{key}": state.pop(key) for key in list(state)})

    plain = vgen_file(tmp_path / "a.pth")
    convert(plain, tmp_path / "plain")
    convert(changed(plain, wrap), tmp_path / "wrapped")
    assert_equal(content(tmp_path / "plain"), content(tmp_path / "wrapped"))


@pytest.mark.parametrize("stage", ["convert", "verify"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_and_keeps_the_old(tmp_path, stage, error):
    file = vgen_file(tmp_path / "a.pth")

    def stop(now, done, total):
        if now == stage and done > total / 2:
            raise error

    convert(file, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for target, to, source in (
        (tmp_path / "new", "diffusers", file),
        (tmp_path / "old", "diffusers", file),
        (tmp_path / "b.pth", "vgen", tmp_path / "old"),
    ):
        with pytest.raises(type(error)):
            convert(source, target, to, progress=stop, force=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_a_failing_disk_is_seen(tmp_path, monkeypatch):
    file = vgen_file(tmp_path / "a.pth")
    write = convert_module.write_safetensors

    def write_and_spoil(folder, *arguments):
        files = write(folder, *arguments)
        content = bytearray(files[0].read_bytes())
        content[-3] ^= 1
        files[0].write_bytes(content)
        return files

    monkeypatch.setattr(convert_module, "write_safetensors", write_and_spoil)
    with pytest.raises(CheckpointError, match="what was written differs from the source"):
        convert(file, tmp_path / "unet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_destinations(tmp_path):
    file = vgen_file(tmp_path / "a.pth")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    convert(file, tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"exists: .*--force"):
        convert(file, tmp_path / "empty")
    convert(file, tmp_path / "empty", force=True, dtype="float16")
    assert detect(tmp_path / "empty").dtypes.keys() == {"float16"}
    for target, to, said in (
        (tmp_path / "photos", "diffusers", "holds other things than a model"),
        (tmp_path, "diffusers", "holds the source"),
        (file, "diffusers", "holds the source"),
        (tmp_path / "b.pth", "diffusers", r"a folder is written: leave \.pth out"),
        (tmp_path / "file", "diffusers", "is a file"),
        (tmp_path / "file" / "b", "diffusers", "no permission to write|not a directory"),
        (tmp_path / "b", "vgen", r"ends in \.pth"),
        (tmp_path / "b\0c", "diffusers", "cannot be used as a path"),
        (tmp_path / "b", "onnx", "to 'onnx' is unknown"),
    ):
        with pytest.raises(CheckpointError, match=said):
            convert(file, target, to, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "empty", "file", "photos"]
    for options, said in (({"dtype": "int8"}, "dtype 'int8'"), ({"max_shard_size": "lots"}, "shard size 'lots'")):
        with pytest.raises(CheckpointError, match=said):
            convert(file, tmp_path / "b", **options)


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    file = vgen_file(tmp_path / "a.pth")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30 * 1000**2))
    with pytest.raises(CheckpointError, match=r"needs 0\.03 GB and 0\.03 GB are free"):
        convert(file, tmp_path / "unet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.skipif(os.name == "nt", reason="has no limits of this kind")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_meanwhile_is_said_and_leaves_nothing(tmp_path):
    import resource

    file = vgen_file(tmp_path / "a.pth")
    convert(file, tmp_path / "unet")
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, before[1]))
    try:
        for source, target, to in ((file, "b", "diffusers"), (tmp_path / "unet", "b.pth", "vgen")):
            with pytest.raises(OSError, match=rf"{target}: could not be written \(.*make room"):
                convert(source, tmp_path / target, to)
            gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "unet"]


def test_what_has_no_counterpart(tmp_path):
    file = vgen_file(tmp_path / "a.pth")
    torch.save({"some.weight": torch.ones(2)}, tmp_path / "some.pth")
    torch.save({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.pth")
    other = seeded(lambda: I2VGenXLUNet(**mf.UNET_FIELDS | {"norm_num_groups": 8}, **SOURCES["vgen-sr600"]), 3)
    other.save_pretrained(tmp_path / "groups")
    for source, to, said in (
        (file, "vgen", "in VGen's layout already"),
        (tmp_path / "some.pth", "diffusers", "no network that i2vgen knows"),
        (tmp_path / "lora.pth", "diffusers", "LoRA"),
        (tmp_path / "groups", "vgen", "norm_num_groups is 8"),
        (tmp_path / "none.pth", "diffusers", "does not exist"),
    ):
        target = tmp_path / ("x.pth" if to == "vgen" else "x")
        with pytest.raises(CheckpointError, match=said):
            convert(source, target, to)
        assert not target.exists()


# Memory

MEASURE = """
import re, sys
from i2vgen.checkpoints.convert import convert
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
begin = status("VmRSS")
convert(sys.argv[1], sys.argv[2])
convert(sys.argv[2], sys.argv[3], to="vgen")
print(status("VmHWM") - begin)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure")
def test_memory_is_that_of_a_part_of_the_file(tmp_path):
    fields = mf.UNET_FIELDS | {"block_out_channels": (192, 384), "cross_attention_dim": 320}
    with torch.device("meta"):
        unet = I2VGenXLUNet(**fields, **SOURCES["vgen-i2vgen-xl"])
    state = {key: (tuple(value.shape), torch.float32) for key, value in mf.original_unet(unet).items()}
    zeros = ((key, torch.zeros(shape)) for key, (shape, _) in state.items())
    file = write_vgen_pth(tmp_path / "i2vgen_xl_1.pth", state, zeros)
    assert 150e6 < file.stat().st_size < 400e6
    command = [sys.executable, "-c", MEASURE, file, tmp_path / "unet", tmp_path / "b.pth"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    # beside what importing the libraries takes, which is more than this file
    assert int(run.stdout) < 1.3 * file.stat().st_size
