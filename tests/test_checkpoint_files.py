"""Weights on disk: reading every format lazily and safely, and writing them in streams."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2vgen.checkpoints import CheckpointError, writing
from i2vgen.checkpoints.detect import detect
from i2vgen.checkpoints.reading import is_plain_path, open_tensors
from i2vgen.checkpoints.writing import (
    num_bytes,
    parse_size,
    replacing,
    shards_of,
    write_safetensors,
    write_vgen_pth,
)

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "b.scale": torch.tensor(3.5),
    "c.half": torch.linspace(-1, 1, 5).half(),
    "d.brain": torch.linspace(-1, 1, 7).bfloat16(),
    "e.none": torch.zeros(0, 3),
    "f.ids": torch.arange(4),
    "g.double": torch.linspace(0, 1, 3, dtype=torch.float64),
}
SPECS = {key: (tuple(value.shape), value.dtype) for key, value in TENSORS.items()}


def assert_same(path: Path, expected=TENSORS) -> None:
    with open_tensors(path) as tensors:
        assert set(tensors) == set(expected)
        for key, value in expected.items():
            assert (tensors.shapes[key], tensors.dtypes[key]) == (tuple(value.shape), value.dtype)
            assert torch.equal(tensors.read(key), value)


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


# Reading


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_plain_and_wrapped(tmp_path, is_zip):
    for name, document in {
        "plain.bin": TENSORS,
        "vgen.pth": {"state_dict": TENSORS, "step": 854500},
        "lightning.ckpt": {"epoch": 3, "global_step": 7, "state_dict": TENSORS, "callbacks": {}},
        "other.pt": {"model": TENSORS, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    }.items():
        torch.save(document, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        assert_same(tmp_path / name)
    with open_tensors(tmp_path / "vgen.pth") as tensors:
        assert tensors.metadata == {"step": 854500}
        assert tensors.format == ("pickle" if is_zip else "old pickle")


def test_the_prefix_of_parallel_training_is_left_out_where_all_keys_have_it(tmp_path):
    wrapped = {f"module.{key}": value for key, value in TENSORS.items()}
    torch.save({"state_dict": wrapped, "step": 3}, tmp_path / "a.pth")
    save_file(wrapped, tmp_path / "a.safetensors")
    write_safetensors(
        tmp_path / "folder",
        {key: (tuple(value.shape), value.dtype) for key, value in wrapped.items()},
        wrapped.items(),
        max_shard_size=60,
    )
    for name in ("a.pth", "a.safetensors", "folder"):
        assert_same(tmp_path / name)
    with open_tensors(tmp_path / "a.pth") as tensors:
        assert tensors.metadata == {"step": 3}
    averaged = {"n_averaged": torch.tensor(4), **wrapped}
    torch.save(averaged, tmp_path / "b.pth")
    assert_same(tmp_path / "b.pth", averaged)


def test_lightning_callback_among_the_keys_is_no_obstacle(tmp_path):
    class ModelCheckpoint:
        pass

    import sys
    from types import ModuleType

    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    modules = {name: ModuleType(name) for name in names if name not in sys.modules}
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = names[-1], "ModelCheckpoint"
    modules[names[-1]].ModelCheckpoint = ModelCheckpoint
    sys.modules.update(modules)
    try:
        torch.save({"state_dict": TENSORS, "callbacks": {ModelCheckpoint: {"best": 1}}}, tmp_path / "sd.ckpt")
    finally:
        for name in modules:
            del sys.modules[name]
    assert_same(tmp_path / "sd.ckpt")


def test_content_counts_and_not_the_suffix(tmp_path):
    save_file(TENSORS, tmp_path / "really_safetensors.ckpt")
    torch.save(TENSORS, tmp_path / "really_a_pickle.safetensors")
    assert_same(tmp_path / "really_safetensors.ckpt")
    with pytest.raises(CheckpointError, match=r"rename it to \.pth"):
        open_tensors(tmp_path / "really_a_pickle.safetensors")


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("call", [os.system, open, eval, Path.write_text])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path, is_zip, call):
    victim = tmp_path / "written"
    arguments = {
        os.system: (f"touch {victim}",),
        open: (str(victim), "w"),
        eval: (f"open({str(victim)!r}, 'w')",),
        Path.write_text: (victim, "x"),
    }[call]
    document = {"state_dict": {"a": torch.ones(2), "b": Bomb(call, *arguments)}, "step": 1}
    torch.save(document, tmp_path / "bad.pth", _use_new_zipfile_serialization=is_zip)
    for use in (open_tensors, detect):
        with pytest.raises(CheckpointError, match=r"bad\.pth is refused: .*Nothing was executed"):
            use(tmp_path / "bad.pth")
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bare_malicious_pickle(tmp_path):
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(Bomb(os.system, f"touch {tmp_path / 'written'}")))
    with pytest.raises(CheckpointError, match=r"bad\.bin is refused: .*Nothing was executed") as caught:
        open_tensors(tmp_path / "bad.bin")
    assert "weights_only" not in str(caught.value)  # PyTorch's own words advise to open it all the same
    assert not (tmp_path / "written").exists()


def test_a_pickle_that_asks_for_all_memory_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": Bomb(bytearray, 2**60)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth: .*more memory"):
        open_tensors(tmp_path / "bad.pth")


def test_files_that_cannot_be_read(tmp_path):
    save_file(TENSORS, tmp_path / "whole.safetensors")
    torch.save(TENSORS, tmp_path / "whole.pth")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("whole.safetensors", "whole.pth", "old.pth"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 3, 9, len(content) // 2, len(content) - 9):
            (tmp_path / f"cut{length}_{name}").write_bytes(content[:length])
            with pytest.raises(CheckpointError, match=rf"cut{length}_{name}"):
                open_tensors(tmp_path / f"cut{length}_{name}")
    for name, content, said in (
        ("page.bin", b"<!DOCTYPE html><html>", "web page"),
        ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("long.safetensors", b"\x00\x00\x01\x00\x00\x00\x00\x00{", "damaged or cut short"),
        ("noise.pth", bytes(range(100, 200)), "neither safetensors nor"),
        ("huge.safetensors", b"\xff" * 7 + b"\x7f{", "neither safetensors nor"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            open_tensors(tmp_path / name)
    for name, document, said in (
        ("list.pth", [torch.ones(1)], "holds list"),
        ("none.pth", {"step": 1}, "holds no tensors"),
        ("mixed.pth", {"state_dict": {"a": torch.ones(1), "b": "text"}}, "b is a str"),
        ("numbers.pth", {0: torch.ones(1)}, "not a name"),
        ("sparse.pth", {"a": torch.ones(2, 2).to_sparse()}, "not a plain tensor"),
    ):
        torch.save(document, tmp_path / name)
        with pytest.raises(CheckpointError, match=said):
            open_tensors(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match="without weights"):
        open_tensors(tmp_path / "photos.zip")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_tensors(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="no weights in it"):
        open_tensors(tmp_path / "folder")


def test_compressed_pickle_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(CheckpointError, match="compressed"):
        open_tensors(tmp_path / "b.pth")


def test_unknown_key_names_the_nearest(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as tensors, pytest.raises(CheckpointError, match=r"nearest .*a\.wei"):
        tensors.read("a.wieght")


def test_reading_goes_on_when_the_file_is_mapped_anew(tmp_path, monkeypatch):
    for module in ("pickles", "reading"):
        monkeypatch.setattr(f"i2vgen.checkpoints.{module}.MAPPED_BYTES", 20)
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pth")
    for suffix in (".safetensors", ".bin"):
        (tmp_path / suffix).mkdir()
        save = save_file if suffix == ".safetensors" else torch.save
        save(TENSORS, tmp_path / suffix / f"model{suffix}")
    for name in ("a.safetensors", "a.pth", ".safetensors", ".bin"):
        with open_tensors(tmp_path / name) as tensors:
            first = tensors.read("a.weight")
            for _ in range(2):
                assert all(torch.equal(tensors.read(key), value) for key, value in TENSORS.items())
            assert torch.equal(first, TENSORS["a.weight"])


# Folders


def sharded(folder: Path, suffix: str, index_name: str, stem: str = "model") -> Path:
    folder.mkdir()
    names = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    keys = list(TENSORS)
    weight_map = {key: names[place > 3] for place, key in enumerate(keys)}
    for name in names:
        part = {key: TENSORS[key] for key in keys if weight_map[key] == name}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / name)
    (folder / index_name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / index_name


@pytest.mark.parametrize(
    "suffix, index_name",
    [
        (".safetensors", "model.safetensors.index.json"),
        (".safetensors", "diffusion_pytorch_model.safetensors.index.json"),
        (".safetensors", "model.safetensors.index.fp16.json"),
        (".safetensors", "model.fp16.safetensors.index.json"),
        (".bin", "pytorch_model.bin.index.json"),
    ],
)
def test_sharded_folders(tmp_path, suffix, index_name):
    index = sharded(tmp_path / "f", suffix, index_name)
    (tmp_path / "f" / "config.json").write_text('{"_class_name": "X"}')
    assert_same(tmp_path / "f")
    assert_same(index)
    with open_tensors(tmp_path / "f") as tensors:
        assert (len(tensors.files), tensors.config) == (2, {"_class_name": "X"})


def test_variants_of_a_folder(tmp_path):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in TENSORS.items()}
    save_file(halves, tmp_path / "model.fp16.safetensors")
    assert_same(tmp_path, halves)
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert_same(tmp_path)
    with open_tensors(tmp_path, variant="fp16") as tensors:
        assert tensors.dtypes["a.weight"] == torch.float16
    with pytest.raises(CheckpointError, match=r"variant 'bf16'; there is fp16, the plain one"):
        open_tensors(tmp_path, variant="bf16")


@pytest.mark.parametrize("name", ["../a", "/etc/a", "x/../../a", "C:\\a", "..\\a", "\\\\host\\a", "", 3, None, "a\0b"])
def test_index_that_leaves_its_folder_is_refused(tmp_path, name):
    assert not is_plain_path(name)
    index = sharded(tmp_path / "f", ".safetensors", "model.safetensors.index.json")
    document = json.loads(index.read_text())
    document["weight_map"]["a.weight"] = name
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="refused"):
        open_tensors(tmp_path / "f")


def test_index_that_disagrees_with_its_files(tmp_path):
    index = sharded(tmp_path / "f", ".safetensors", "model.safetensors.index.json")
    good = json.loads(index.read_text())
    first, second = sorted(set(good["weight_map"].values()))
    for change, said in (
        ({"new": first}, "new is not in"),
        ({"a.weight": second}, r"a\.weight is in .* and not in the index"),
        ({"a.weight": "gone.safetensors"}, r"gone\.safetensors is missing"),
    ):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | change}))
        with pytest.raises(CheckpointError, match=said):
            open_tensors(tmp_path / "f")
    for text in ("{", "[]", '{"weight_map": []}', '{"weight_map": {}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            open_tensors(tmp_path / "f")


def test_hub_cache_links_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshot").mkdir()
    os.symlink("../blobs/0a1b", tmp_path / "snapshot" / "model.safetensors")
    assert_same(tmp_path / "snapshot")


# Writing


def test_safetensors_are_read_by_the_library(tmp_path):
    files = write_safetensors(tmp_path / "f", SPECS, reversed(TENSORS.items()), metadata={"step": "7"})
    assert [file.name for file in files] == ["diffusion_pytorch_model.safetensors"]
    loaded = load_file(files[0])
    assert all(torch.equal(loaded[key], value) for key, value in TENSORS.items())
    assert_same(tmp_path / "f")
    with open_tensors(tmp_path / "f") as tensors:
        assert tensors.metadata == {"format": "pt", "step": 7}


def test_shards_are_named_as_usual_and_within_their_size(tmp_path):
    files = write_safetensors(tmp_path / "f", SPECS, TENSORS.items(), "model", max_shard_size=60)
    shards = shards_of(SPECS, 60)
    assert len(shards) > 2
    assert [file.name for file in files] == [
        *(f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)),
        "model.safetensors.index.json",
    ]
    for keys in shards:
        assert sum(num_bytes(SPECS[key]) for key in keys) <= 60 or len(keys) == 1
    total = sum(map(num_bytes, SPECS.values()))
    assert json.loads(files[-1].read_text())["metadata"] == {"total_size": total}
    assert_same(tmp_path / "f")


def test_pth_is_read_by_torch_and_by_zip(tmp_path):
    write_vgen_pth(tmp_path / "a.pth", SPECS, TENSORS.items(), step=854500)
    for options in ({}, {"mmap": True}):
        document = torch.load(tmp_path / "a.pth", weights_only=True, **options)
        assert document["step"] == 854500
        assert list(document["state_dict"]) == list(TENSORS)
        for key, value in TENSORS.items():
            assert torch.equal(document["state_dict"][key], value)
            assert document["state_dict"][key].stride() == value.stride()
            assert document["state_dict"][key].data_ptr() % value.itemsize == 0
    assert zipfile.ZipFile(tmp_path / "a.pth").testzip() is None
    assert_same(tmp_path / "a.pth")


def test_dtypes_are_converted_and_overflow_is_said(tmp_path):
    specs = {"a.weight": ((3, 4), torch.float16)}
    for write, path in ((write_safetensors, tmp_path / "f"), (write_vgen_pth, tmp_path / "a.pth")):
        write(path, specs, [("a.weight", TENSORS["a.weight"])])
        assert_same(path, {"a.weight": TENSORS["a.weight"].half()})
    for value, said in ((1e5, r"a\.weight: its largest value 1e\+05 .*float16"), (float("nan"), "NaN or infinity")):
        with pytest.raises(CheckpointError, match=said):
            write_safetensors(tmp_path / "g", specs, [("a.weight", torch.full((3, 4), value))])


def test_tensors_that_do_not_belong(tmp_path):
    specs = {"a": ((2,), torch.float32), "b": ((2,), torch.float32)}
    ones = torch.ones(2)
    for number, (tensors, said) in enumerate(
        (
            ([("a", ones), ("c", ones)], "c: no place"),
            ([("a", ones), ("a", ones)], "a: no place"),
            ([("a", ones)], "b: has not been written"),
            ([("a", torch.ones(3))], r"a: has shape \[3\], expected \[2\]"),
        )
    ):
        for write in (write_safetensors, write_vgen_pth):
            with pytest.raises(CheckpointError, match=said):
                write(tmp_path / f"{write.__name__}{number}", specs, tensors)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interruption_leaves_things_as_they_were(tmp_path, error):
    old = tmp_path / "old"
    old.mkdir()
    (old / "a").write_text("old")
    for target in (old, tmp_path / "new" / "deep"):
        with pytest.raises(type(error)), replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "a").write_text("half")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (old / "a").read_text() == "old"
    with replacing(old) as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "b"]


def test_what_a_killed_process_left_is_put_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LOCKING_SECONDS", 0)
    target = tmp_path / "model"
    killed, moved_away = tmp_path / ".model.0123456789ab", tmp_path / ".model.ba9876543210"
    for place in (killed / "model", moved_away / ".old", tmp_path / ".model.other", tmp_path / ".models.0123456789ab"):
        place.mkdir(parents=True)
    (killed / "model" / "a").write_text("half")
    (moved_away / ".old" / "a").write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(target) as first:
        assert (target / "a").read_text() == "old"  # killed between the two renames
        first.mkdir()
        with replacing(target) as second:  # another process's, which leaves the first one alone
            second.mkdir()
        assert first.is_dir()
        raise OSError("disk full")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.other", ".models.0123456789ab", "model"]


def test_sizes_in_words():
    assert [parse_size(text) for text in ("5GB", "500 mb", 7, "1GiB", "1.5KB")] == [
        5 * 10**9,
        5 * 10**8,
        7,
        2**30,
        1500,
    ]
    for text in ("", "many", "-1GB", "0", "5TB", "nanGB", "1e9"):
        with pytest.raises(CheckpointError, match="shard size"):
            parse_size(text)
