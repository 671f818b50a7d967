"""`i2vgen convert` and `i2vgen inspect`: what they print, their JSON, and their errors in one line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import model_folders as mf
from i2vgen.checkpoints.detect import detect


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    mf.write_unet(folder / "i2vgen_xl_7.pth", "vgen-i2vgen-xl")
    mf.write_unet(folder / "weights.pth", "vgen-sr600")
    return folder


def test_convert_says_what_was_done(run, checkpoints, tmp_path):
    result = run("convert", checkpoints / "i2vgen_xl_7.pth", tmp_path / "unet")
    assert result.code == 0, result.err
    first, second = result.out.splitlines()
    assert first == f"{tmp_path / 'unet'}: video UNet, i2vgen-xl"
    assert "all compared with the source" in second
    assert detect(tmp_path / "unet").variant == "i2vgen-xl"


def test_convert_there_and_back_in_json(run, checkpoints, tmp_path):
    result = run("convert", checkpoints / "weights.pth", tmp_path / "a", "--source", "vgen-sr600", "--json")
    document = json.loads(result.out)
    assert (document["kind"], document["to"], document["left_out"]) == ("unet", "diffusers", [])
    assert document["networks"] == {"unet": detect(tmp_path / "a").num_tensors}
    result = run("convert", tmp_path / "a", tmp_path / "b.pth", "--to", "vgen", "--dtype", "float16", "--json")
    assert json.loads(result.out)["bytes"] * 2 == document["bytes"]
    assert detect(tmp_path / "b.pth").dtypes.keys() == {"float16"}


def test_convert_refuses_in_one_line(run, checkpoints, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    for arguments, said in (
        (("weights.pth", tmp_path / "x"), "say which as --source"),
        (("i2vgen_xl_7.pth", tmp_path / "full"), "--force"),
        (("nothing.pth", tmp_path / "x"), "does not exist"),
        (("i2vgen_xl_7.pth", tmp_path / "x", "--max-shard-size", "much"), "shard size 'much'"),
        (("i2vgen_xl_7.pth", tmp_path / "x", "--dtype", "int8"), "int8"),
        (("i2vgen_xl_7.pth", tmp_path / "x", "--to", "onnx"), "onnx"),
        (
            ("i2vgen_xl_7.pth", tmp_path / "x", "--to", "vgen"),
            "a .pth of the UNet is written, and VAE and towers are not",
        ),
    ):
        result = run("convert", checkpoints / arguments[0], *arguments[1:])
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1
        assert said in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert run("convert", checkpoints / "i2vgen_xl_7.pth", tmp_path / "full", "--force").code == 0


def test_interrupted_convert_leaves_nothing(run, checkpoints, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("i2vgen.checkpoints.convert._verify", interrupt)
    result = run("convert", checkpoints / "i2vgen_xl_7.pth", tmp_path / "unet")
    assert (result.code, result.err) == (130, "error: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_malicious_file_is_refused_by_both(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'written'}",)

    torch.save({"state_dict": {"a": torch.ones(1)}, "step": Bomb()}, tmp_path / "bad.pth")
    for command in (("inspect", tmp_path / "bad.pth"), ("convert", tmp_path / "bad.pth", tmp_path / "x")):
        result = run(*command)
        assert result.code == 2
        assert "is refused" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_inspect_a_file(run, checkpoints):
    out = run("inspect", checkpoints / "i2vgen_xl_7.pth").out
    rows = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    assert rows["is"].strip() == "video UNet, i2vgen-xl"
    assert rows["layout"].strip() == "vgen-i2vgen-xl"
    assert rows["keys"].strip() == "all known, none missing, shapes fit"
    assert " ".join(out.split()).endswith(f"to convert it i2vgen convert {checkpoints / 'i2vgen_xl_7.pth'} FOLDER")
    ambiguous = " ".join(run("inspect", checkpoints / "weights.pth").out.split())
    assert "sr600 or vid2vid-xl" in ambiguous
    assert ambiguous.endswith(" FOLDER --source vgen-sr600 or --source modelscope-vid2vid")


def test_inspect_lists_every_tensor(run, checkpoints):
    path = checkpoints / "i2vgen_xl_7.pth"
    state = torch.load(path, weights_only=True)["state_dict"]
    out = run("inspect", path, "--keys").out
    lines = {line.split()[0]: line.split()[1:] for line in out.split("\ntensors\n")[1].splitlines()}
    assert lines == {key: ["x".join(map(str, value.shape)), "float32"] for key, value in state.items()}
    document = json.loads(run("inspect", path, "--json", "--keys").out)
    assert document["tensors"][""] == {key: [list(value.shape), "float32"] for key, value in state.items()}
    assert (document["variant"], document["problem"]) == ("i2vgen-xl", None)
    assert document["parameters"] == sum(value.numel() for value in state.values())


def test_inspect_gives_a_terminal_no_orders(run, tmp_path):
    save_file({"\x1b[31mred\n": torch.zeros(1)}, tmp_path / "odd.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    for arguments in (("inspect", "--keys"), ("convert", tmp_path / "x")):
        result = run(arguments[0], tmp_path / "odd.safetensors", arguments[1])
        assert "\x1b" not in result.out + result.err
    assert "dtype" not in run("inspect", tmp_path / "empty.safetensors").out


def test_inspect_an_incomplete_file(run, checkpoints, tmp_path):
    state = torch.load(checkpoints / "i2vgen_xl_7.pth", weights_only=True)["state_dict"]
    state.pop("out.2.bias")
    torch.save(state, tmp_path / "short.pth")
    result = run("inspect", tmp_path / "short.pth")
    assert result.code == 0
    assert "missing key out.2.bias" in " ".join(result.out.split())
    assert "missing key out.2.bias" in json.loads(run("inspect", tmp_path / "short.pth", "--json").out)["problem"]


def test_inspect_folders(run, tmp_path):
    assert "pipeline folder, nano" in run("inspect", nano_dir()).out
    folder = mf.image2video_folder(tmp_path / "Image-to-Video")
    document = json.loads(run("inspect", folder, "--json").out)
    assert (document["kind"], document["variant"]) == ("modelscope", "image2video")
    assert set(document["components"]) == {"image2video", "vae", "clip"}
    assert run("inspect", tmp_path).code == 2


def nano_dir():
    from i2vgen.pipelines.loading import NANO_DIR

    return NANO_DIR
