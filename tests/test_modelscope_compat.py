"""ModelScope's interface: arguments, where models are looked for, what comes back, and errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.compat import modelscope
from i2vgen.compat.modelscope import OutputKeys, Tasks, pipeline
from i2vgen.media import MediaError
from i2vgen.pipelines import ModelError
from model_folders import image2video_folder, video2video_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("damo")
    return {
        Tasks.image_to_video: image2video_folder(root / "Image-to-Video"),
        Tasks.video_to_video: video2video_folder(root / "Video-to-Video"),
    }


def quick(pipe):
    """One step in place of 30 or 50."""
    pipe.model.options = dataclasses.replace(pipe.model.options, num_inference_steps=1)
    pipe.model.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def animate(folders):
    return quick(pipeline(Tasks.image_to_video, folders[Tasks.image_to_video], device="cpu"))


@pytest.fixture(scope="module")
def refine(folders):
    return quick(pipeline(Tasks.video_to_video, folders[Tasks.video_to_video], device="cpu"))


@pytest.fixture
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "modelscope", None)  # not installed
    return tmp_path / "cache"


def decoded(source):
    with av.open(source) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_without_a_path_the_bytes_come_back(animate, photo, tmp_path):
    written = animate(photo, output_video=str(tmp_path / "a.mp4"))
    content = animate(photo)[OutputKeys.OUTPUT_VIDEO]
    assert isinstance(content, bytes)
    (tmp_path / "b.mp4").write_bytes(content)
    assert written == {"output_video": str(tmp_path / "a.mp4")}
    first, second = (decoded(str(tmp_path / name)).astype(int) for name in ("a.mp4", "b.mp4"))
    assert first.shape == second.shape
    assert np.abs(first - second).mean() < 12  # the encoder does not give the same bytes twice at such a size


def test_seed_of_the_configuration_governs_each_call(animate, photo):
    assert animate.seed == 666
    first, again, other = (animate(photo, seed=seed)[OutputKeys.OUTPUT_VIDEO] for seed in (None, 666, 667))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", ["path", "array", "picture"])
def test_pictures_of_all_kinds(animate, photo, photo_path, kind):
    source = {"path": str(photo_path), "array": np.asarray(photo), "picture": photo}[kind]
    assert animate(source) == animate(photo_path)


def test_a_list_gives_a_list(animate, photo):
    results = animate([photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert results[0] == animate(photo)
    assert results[1] != results[0]
    with pytest.raises(ValueError, match="output_video"):
        animate([photo, photo], output_video="a.mp4")


def test_text_is_optional_and_matters(refine, clip):
    plain = refine({"video_path": str(clip)})
    assert plain == refine({"video_path": str(clip), "text": ""})
    assert plain != refine({"video_path": str(clip), "text": "a lighthouse in a storm"})


def test_no_more_frames_than_the_configuration_says(refine, clip, tmp_path):
    path = refine({"video_path": str(clip)}, output_video=str(tmp_path / "a.mp4"))[OutputKeys.OUTPUT_VIDEO]
    assert decoded(path).shape == (2, 20, 32, 3)  # of the five frames, 40 x 24, of the source


def test_rate_of_the_configuration(folders, tmp_path, photo):
    folder = image2video_folder(tmp_path / "model", target_fps=5)
    path = quick(pipeline(Tasks.image_to_video, str(folder), device="cpu"))(photo, output_video=tmp_path / "a.mp4")
    with av.open(path[OutputKeys.OUTPUT_VIDEO]) as container:
        assert container.streams.video[0].average_rate == 5


def test_exact_runs(folders, photo):
    pipe = quick(pipeline(Tasks.image_to_video, folders[Tasks.image_to_video], device="cpu", exact=True))
    assert pipe(photo)[OutputKeys.OUTPUT_VIDEO]


def test_task_is_that_of_the_folder(folders):
    pipe = pipeline(model=folders[Tasks.video_to_video], device="cpu")
    assert isinstance(pipe, modelscope.VideoToVideoPipeline)


# Where models are looked for


@pytest.mark.parametrize("place", ["hub", "", "hub/models", "models"])
def test_cache_of_modelscope_is_used(nothing_cached, place):
    folder = nothing_cached / place / "damo" / "Image-to-Video"
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text(json.dumps({"task": "image-to-video", "model": {}}))
    assert modelscope.local_model("damo/Image-to-Video", "v1.1.0") == folder


def test_model_that_is_nowhere_says_how_to_get_it(nothing_cached):
    with pytest.raises(ModelError, match=r"modelscope download --model damo/Image-to-Video --revision v1\.1\.0"):
        pipeline(task="image-to-video", model="damo/Image-to-Video", model_revision="v1.1.0")
    with pytest.raises(ModelError, match="damo/Video-to-Video"):
        pipeline("video-to-video")


def test_installed_modelscope_downloads(nothing_cached, tmp_path, monkeypatch):
    calls = []

    def snapshot_download(model, **options):
        calls.append((model, options))
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "modelscope", ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.hub", ModuleType("modelscope.hub"))
    module = ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert modelscope.local_model("damo/Image-to-Video", "v1.1.0") == tmp_path
    assert calls == [("damo/Image-to-Video", {"revision": "v1.1.0"})]

    def fails(model, **options):
        raise ConnectionError("no network")

    module.snapshot_download = fails
    with pytest.raises(ModelError, match="no network"):
        modelscope.local_model("damo/Image-to-Video")


@pytest.mark.parametrize("model", ["../no such/folder", "no such folder", "a/b/c", "damo/..", ""])
def test_model_that_is_no_id_is_said(nothing_cached, model):
    with pytest.raises(ModelError, match="model"):
        pipeline(Tasks.image_to_video, model)


# Errors


def test_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'text-to-video' is unknown.*'image-to-video' and 'video-to-video'"):
        pipeline("text-to-video", "damo/Image-to-Video")


def test_task_that_the_model_does_not_have(folders):
    with pytest.raises(ModelError, match="no refiner"):
        pipeline(Tasks.video_to_video, folders[Tasks.image_to_video], device="cpu")


@pytest.mark.parametrize("source", [{"image": "a.png"}, "no such.png", b"", 3])
def test_bad_picture_is_said(animate, source, tmp_path):
    with pytest.raises(ValueError, match=r"picture|no such|bytes|3"):
        animate(source, output_video=tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [{}, "a.mp4", {"video_path": "no such.mp4"}, {"video_path": "a.mp4", "txet": "a"}])
def test_bad_video_is_said(refine, source, tmp_path):
    with pytest.raises(ValueError, match=r"video_path|no such|txet"):
        refine(source, output_video=tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_bad_output_is_said_before_the_work(animate, photo, monkeypatch):
    monkeypatch.setattr(animate, "model", None)
    with pytest.raises(MediaError, match=r"\.mp5"):
        animate(photo, output_video="a.mp5")


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "8888"])
def test_bad_seed_is_said(animate, photo, seed):
    with pytest.raises(ValueError, match="seed"):
        animate(photo, seed=seed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["gpu", "gpu:0", "cuda", "cuda:0"])
def test_missing_cuda_falls_back_with_a_warning(device, caplog):
    assert modelscope.available_device(device).type in ("cpu", "mps")
    assert "no CUDA" in caplog.text


def test_other_arguments_are_ignored_with_a_warning(folders, caplog):
    pipeline(Tasks.image_to_video, folders[Tasks.image_to_video], device="cpu", preprocessor=None)
    assert "preprocessor" in caplog.text
