"""Batches: pure functions of the step, the same for any number of processes, honest about what is damaged."""

from __future__ import annotations

import http.server
import json
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from i2vgen.data import storage
from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_loader import ClipLoader
from i2vgen.data.clip_sampler import ClipSampler, nearest_buckets, permuted
from i2vgen.data.clip_table import ClipTable, load_table
from i2vgen.data.errors import DataError, StorageError, TooManyBadFilesError
from i2vgen.data.sources import Container
from numbered_clips import clip_bytes, number_of, photo_bytes, rows_of, write_tar

NUM_VIDEOS, NUM_PHOTOS = 12, 6
WIDE, TALL = (80, 48), (48, 80)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards: 12 videos of 1.5 s at 24 frames a second, every third upright, numbered from 50 i; 6 photos."""
    folder = tmp_path_factory.mktemp("shards")
    members = [{}, {}]
    for index in range(NUM_VIDEOS):
        size = TALL if index % 3 == 2 else WIDE
        members[index % 2] |= {
            f"v{index:02d}.mp4": clip_bytes(np.arange(37) / 24, first=50 * index, size=size),
            f"v{index:02d}.txt": f"video {index}".encode(),
        }
    for index in range(NUM_PHOTOS):
        members[0] |= {f"p{index}.png": photo_bytes(900 + index), f"p{index}.txt": f"photo {index}".encode()}
    for number, group in enumerate(members):
        write_tar(folder / f"c-{number:03d}.tar", group)
    return folder


@pytest.fixture
def config(shards, tmp_path) -> ClipDataConfig:
    return ClipDataConfig(
        sources=[f"{shards}/c-{{000..001}}.tar"],
        buckets=[[80, 48], [32, 48]],
        frame_choices=[4, 8],
        fps_choices=[8.0, 12.0],
        image_share=0.25,
        batch_sizes={"1": 6, "4": 4, "8": 2},
        num_workers=2,
        cache_dir=str(tmp_path / "cache"),
    )


def same(one, other) -> bool:
    return (
        torch.equal(one.frames, other.frames)
        and one.captions == other.captions
        and one.keys == other.keys
        and torch.equal(one.fps, other.fps)
    )


def test_batches_hold_what_their_spec_and_captions_say(config):
    seen = Counter()
    with ClipLoader(config, seed=3) as loader:
        for step in range(24):
            spec, batch = loader.spec(step), loader.batch(step)
            seen[spec.kind, spec.num_frames, spec.fps] += 1
            assert batch.frames.dtype == torch.uint8
            assert batch.frames.shape == (spec.batch_size, spec.num_frames, spec.height, spec.width, 3)
            assert batch.fps.tolist() == [spec.fps] * spec.batch_size
            for frames, caption, key in zip(batch.frames.numpy(), batch.captions, batch.keys, strict=True):
                kind, number = caption.split()
                assert key == (f"v{int(number):02d}.mp4" if kind == "video" else f"p{number}.png")
                if kind == "photo":
                    assert number_of(frames[0]) == 900 + int(number)
                elif (spec.width, spec.height) == WIDE:
                    got = [number_of(frame) - 50 * int(number) for frame in frames]
                    assert got[0] >= 0
                    assert got[-1] <= 36
                    assert set(np.diff(got)) == {24 / spec.fps}
    assert sum(count for (kind, *_), count in seen.items() if kind == "image") == 6
    assert {key[1:] for key in seen if key[0] == "video"} == {(4, 8.0), (4, 12.0), (8, 8.0), (8, 12.0)}


def test_a_step_does_not_depend_on_those_before_it(config):
    with ClipLoader(config, seed=1) as loader, ClipLoader(config, seed=1) as fresh, ClipLoader(config, seed=2) as other:
        ahead = {step: batch for step, batch, waited in loader.prefetch(0, 12) if waited >= 0}
        assert sorted(ahead) == list(range(12))
        for step in (11, 4, 7):
            assert same(fresh.batch(step), ahead[step])
        assert all(same(batch, ahead[step]) for step, batch, _ in fresh.prefetch(9, 12))
        assert not all(same(other.batch(step), ahead[step]) for step in range(4))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_two_processes_see_the_batch_of_one(config, num_workers):
    config.num_workers = num_workers
    whole = ClipLoader(config, seed=5)
    halves = [ClipLoader(config, seed=5, rank=rank, world_size=2) for rank in range(2)]
    for step in range(10):
        one, parts = whole.batch(step), [half.batch(step) for half in halves]
        assert torch.equal(one.frames, torch.cat([part.frames for part in parts]))
        assert one.keys == parts[0].keys + parts[1].keys
        if len(set(one.keys)) == len(one.keys):
            assert not set(parts[0].keys) & set(parts[1].keys)
    with pytest.raises(DataError, match="multiple of 4"):
        ClipLoader(config, rank=0, world_size=4)


def table_of(num: int, *, duration=10.0, fps=24.0, width=80, height=48, weight=None, source=None) -> ClipTable:
    full = lambda value, kind=float: np.broadcast_to(np.asarray(value, kind), (num,)).copy()  # noqa: E731
    return ClipTable(
        containers=[Container("folder", "x")],
        names=[f"{i}.mp4" for i in range(num)],
        captions=[str(i) for i in range(num)],
        container=full(0, np.int32),
        source=full(0 if source is None else source, np.int16),
        is_video=full(True, bool),
        offset=full(0, np.int64),
        size=full(1, np.int64),
        width=full(width, np.int32),
        height=full(height, np.int32),
        fps=full(fps),
        start=full(0),
        duration=full(duration),
        weight=full(1 if weight is None else weight),
        left_out={},
        bad={},
    )


def plan(**fields) -> ClipDataConfig:
    defaults = {"sources": ["x"], "image_share": 0.0, "frame_choices": [16], "fps_choices": [8.0]}
    return ClipDataConfig(**{**defaults, "buckets": [[80, 48]], "batch_sizes": {"32": 5}, **fields})


def drawn(sampler: ClipSampler, steps: range) -> list[int]:
    return [draw.index for step in steps for draw in sampler.draws(step)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1000])
def test_a_permutation_is_one(length):
    orders = [permuted(np.arange(length), length, np.uint64(key)) for key in range(3)]
    for order in orders:
        assert sorted(order) == list(range(length))
    if length > 3:
        assert not np.array_equal(orders[0], orders[1])


def test_every_clip_once_an_epoch_also_across_a_planned_block():
    sampler = ClipSampler(table_of(7), plan(), seed=0)
    for begin in (0, 4095 * 5 // 35 * 7, 9_996):
        # 7 batches of 5 are 5 epochs of 7.
        begin -= begin % 7
        got = np.array(drawn(sampler, range(begin, begin + 7))).reshape(5, 7)
        assert all(sorted(epoch) == list(range(7)) for epoch in got.tolist())
        assert len({tuple(epoch) for epoch in got.tolist()}) > 1


def test_a_far_step_costs_little_and_agrees():
    near, far = (ClipSampler(table_of(50), plan(frame_choices=[8, 16]), seed=4) for _ in range(2))
    for step in range(0, 20_000, 977):
        near.spec(step)
    assert far.draws(19_540) == near.draws(19_540)


def test_weights_and_source_shares():
    weight = np.array([0.5, 1, 2.5] * 4)
    sampler = ClipSampler(table_of(12, weight=weight), plan(), seed=0)
    for begin in (0, 120):
        # 12 draws are an epoch: a clip of weight w (mean 4/3) comes floor or ceil of w / mean times.
        got = Counter(np.array(drawn(sampler, range(begin, begin + 12)))[:12].tolist())
        for index in range(12):
            assert abs(got[index] - weight[index] * 0.75) < 1
    source = np.array([0] * 10 + [1] * 2)
    sampler = ClipSampler(table_of(12, source=source), plan(sources=["x", "y"], weights=[1, 3]), seed=0)
    got = np.array(drawn(sampler, range(240)))
    assert np.mean(got >= 10) == pytest.approx(0.75, abs=0.01)
    with pytest.raises(DataError, match="weights has 1"):
        plan(sources=["x", "y"], weights=[1]).check()


def test_short_and_slow_videos_are_left_out_of_the_draws_they_cannot_serve(caplog):
    duration = np.array([0.5, 1.0, 2.0, 4.0, 8.0] * 4)
    fps = np.array([24.0] * 10 + [8.0] * 10)
    fields = {"frame_choices": [8, 16, 32], "fps_choices": [4.0, 8.0, 16.0], "frame_weights": [1, 1, 2]}
    config = plan(**fields, image_share=0.125, batch_sizes={"1": 8, "8": 4, "16": 4, "32": 2})
    sampler = ClipSampler(table_of(20, duration=duration, fps=fps), config, seed=0)
    shares = Counter()
    for step in range(1000):
        spec = sampler.spec(step)
        shares[spec.kind, spec.num_frames] += 1 / 1000
        assert spec.batch_size == {1: 8, 8: 4, 16: 4, 32: 2}[spec.num_frames]
        for draw in sampler.draws(step):
            if spec.kind == "video":
                assert draw.start + (spec.num_frames - 1) / spec.fps <= duration[draw.index] + 0.01
                assert fps[draw.index] >= 0.9 * spec.fps
    # No pictures: single frames serve. Shares are by batches.
    assert shares["image", 1] == pytest.approx(0.125, abs=1e-9)
    assert shares["video", 32] == pytest.approx(0.4375, abs=0.05)
    assert shares["video", 8] == pytest.approx(0.21875, abs=0.05)
    with pytest.raises(DataError, match=r"32 frames.*longest has 1\.00 s"):
        ClipSampler(table_of(3, duration=1.0), plan(frame_choices=[8, 32]), seed=0)
    ClipSampler(table_of(3, duration=1.0), plan(frame_choices=[8], fps_choices=[4.0, 8.0]), seed=0)
    assert "no video serves 8 frames at 4 a second" in caplog.text


def test_each_clip_goes_to_the_nearest_aspect():
    buckets = [[448, 256], [352, 352], [256, 448]]
    width, height = np.array([1920, 640, 600, 720, 1080]), np.array([1080, 480, 500, 900, 1920])
    assert nearest_buckets(width, height, buckets).tolist() == [0, 0, 1, 1, 2]


def test_images_are_evenly_mixed_seven_to_one(config):
    config.image_share = 0.125
    with ClipLoader(config) as loader:
        kinds = [loader.spec(step).kind for step in range(800)]
    assert all(kinds[i : i + 8].count("image") == 1 for i in range(0, 800, 8))


@pytest.fixture
def damaged(tmp_path):
    """A folder of 10 videos; in 3 and 7 the last pictures are zeros, while all headers are sound."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for index in range(10):
        data = bytearray(clip_bytes(np.arange(30) / 24, first=index * 40))
        if index in (3, 7):
            end = data.index(b"moov") - 4
            begin = data.index(b"mdat") + 4
            begin += (end - begin) * 3 // 5
            data[begin:end] = bytes(end - begin)
        (folder / f"c{index}.mp4").write_bytes(data)
        (folder / f"c{index}.txt").write_text(f"clip {index}")
    return folder


def damaged_config(folder, tmp_path, **fields) -> ClipDataConfig:
    defaults = {"sources": [str(folder)], "buckets": [[80, 48]], "frame_choices": [8], "fps_choices": [8.0]}
    defaults |= {"image_share": 0.0, "batch_sizes": {"8": 2}, "cache_dir": str(tmp_path / "cache"), "num_workers": 1}
    return ClipDataConfig(**{**defaults, **fields})


def test_damaged_clips_are_named_and_replaced_the_same_way_everywhere(damaged, tmp_path):
    config, notes = damaged_config(damaged, tmp_path, max_bad_share=0.2), tmp_path / "run" / "bad_files.jsonl"
    whole = ClipLoader(config, bad_files_path=notes)
    batches = [whole.batch(step) for step in range(15)]
    assert whole.num_bad == 2
    assert sorted(row["name"][-6:] for row in rows_of(notes)) == ["c3.mp4", "c7.mp4"]
    assert all("c3.mp4" not in batch.keys and "c7.mp4" not in batch.keys for batch in batches)
    halves = [ClipLoader(config, rank=rank, world_size=2, bad_files_path=notes) for rank in range(2)]
    for step, batch in enumerate(batches):
        assert torch.equal(batch.frames, torch.cat([half.batch(step).frames for half in halves]))
    # Those noted before are not noted again.
    assert len(rows_of(notes)) == 2


def test_too_many_damaged_clips_stop_the_run(damaged, tmp_path):
    config = damaged_config(damaged, tmp_path, max_bad_share=0.15)
    with ClipLoader(config) as loader, pytest.raises(TooManyBadFilesError, match=r"c[37]\.mp4.*c[37]\.mp4"):
        for _ in loader.prefetch(0, 20):
            pass


def test_damage_that_the_index_finds_counts_too(damaged, tmp_path):
    for index in range(3):
        (damaged / f"c{index}.mp4").write_bytes(b"nothing")
    notes = tmp_path / "bad_files.jsonl"
    with pytest.raises(TooManyBadFilesError, match=r"3 of 10 .*c0\.mp4"):
        ClipLoader(damaged_config(damaged, tmp_path, max_bad_share=0.2), bad_files_path=notes)
    assert len(rows_of(notes)) == 3
    ClipLoader(damaged_config(damaged, tmp_path, max_bad_share=0.3))


def test_a_file_that_goes_away_is_a_damaged_one(damaged, tmp_path):
    loader = ClipLoader(damaged_config(damaged, tmp_path, max_bad_share=1.0))
    for index in range(1, 10):
        (damaged / f"c{index}.mp4").unlink()
    assert set(loader.batch(0).keys) == {"c0.mp4"}


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Static files with ranges; counts bytes, and fails as often as `failures` says."""

    sent, failures, has_ranges = 0, 0, True

    def do_GET(self):
        if type(self).failures > 0:
            type(self).failures -= 1
            self.send_error(503)
            return
        path = self.translate_path(self.path)
        try:
            data = Path(path).read_bytes()
        except OSError:
            self.send_error(404)
            return
        total = len(data)
        wanted = self.headers.get("Range")
        if wanted and type(self).has_ranges:
            begin, end = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            data = data[begin : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        type(self).sent += len(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shards, monkeypatch):
    handler = type("Handler", (RangeServer,), {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shards)))
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    yield handler, f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()
    thread.join()


def test_shards_behind_http_are_the_local_ones(server, config):
    handler, address = server
    with ClipLoader(config, seed=2) as local:
        expected = [local.batch(step) for step in range(3)]
    config.sources = [f"{address}/c-{{000..001}}.tar?key=secret"]
    handler.failures = 2  # passing troubles
    with ClipLoader(config, seed=2) as remote:
        assert all(same(remote.batch(step), expected[step]) for step in range(3))
        handler.failures = 10**6
        with pytest.raises(StorageError, match=r"c-00\d\.tar' cannot be read") as raised:
            remote.batch(5)
        assert "secret" not in str(raised.value)
        assert remote.num_bad == 0


def test_http_reads_only_what_it_needs(server, tmp_path, shards):
    handler, address = server
    (shards / "big.tar").write_bytes((shards / "c-000.tar").read_bytes()[:-1024] + b"")
    members = {"junk.bin": bytes(6 << 20), "a.mp4": clip_bytes(np.arange(30) / 24), "b.bin": bytes(6 << 20)}
    write_tar(shards / "big.tar", members)
    store = storage.open_store(f"{address}/big.tar")
    from i2vgen.data.shard_index import scan_shard

    assert [item.name for item in scan_shard(store).items] == ["a.mp4"]
    assert handler.sent < 5 << 20
    handler.has_ranges = False
    with pytest.raises(DataError, match="range"):
        storage.open_store(f"{address}/big.tar")
    with pytest.raises(DataError, match="not there"):
        storage.open_store(f"{address}/none.tar")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sources": []}, "sources is empty"),
        ({"buckets": [[448]]}, "buckets"),
        ({"buckets": []}, "buckets"),
        ({"frame_choices": [0]}, "frame_choices"),
        ({"fps_choices": [float("nan")]}, "fps_choices"),
        ({"image_share": 1.5}, "image_share"),
        ({"batch_sizes": {"8": 4}}, "batch_sizes has no entry for 16"),
        ({"batch_sizes": {"32": 0}}, "batch_sizes"),
        ({"num_workers": -1}, "num_workers"),
        ({"weights": [-1.0]}, "weights"),
    ],
)
def test_a_config_that_cannot_be_names_its_field(fields, message):
    with pytest.raises(DataError, match=message):
        plan(**fields).check()


def test_sources_without_captions_or_clips_are_an_error(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    fields = {"sources": [str(folder)], "cache_dir": str(tmp_path / "cache"), "image_share": 1.0}
    with pytest.raises(DataError, match="no videos"):
        load_table(ClipDataConfig(**fields))
    (folder / "a.png").write_bytes(photo_bytes(1))
    with pytest.raises(DataError, match="no caption"):
        load_table(ClipDataConfig(**fields))
    assert load_table(ClipDataConfig(**fields, require_captions=False)).captions == [""]
    (folder / "list.jsonl").write_text(json.dumps({"file": "a.png", "caption": "x", "split": "val"}))
    fields["sources"] = [str(folder / "list.jsonl")]
    assert len(load_table(ClipDataConfig(**fields, split="val"))) == 1
    with pytest.raises(DataError, match="split"):
        load_table(ClipDataConfig(**fields, split="train"))


def test_frames_for_the_model_are_in_minus_one_to_one(config):
    with ClipLoader(config) as loader:
        batch = loader.batch(0)
    frames = batch.to_frames()
    assert frames.shape == (len(batch.keys), 3, *batch.frames.shape[1:4])
    assert torch.equal(((frames + 1) * 127.5).round().to(torch.uint8), batch.frames.permute(0, 4, 1, 2, 3))
