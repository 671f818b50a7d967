"""ModelScope's `pipeline` for the tasks "image-to-video" and "video-to-video".

Its published examples run with `modelscope.pipelines` and `modelscope.outputs` replaced by this module::

    from i2vgen.compat.modelscope import OutputKeys, pipeline

    pipe = pipeline(task='image-to-video', model='damo/Image-to-Video', model_revision='v1.1.0')
    path = pipe('photo.jpg', output_video='./output.mp4')[OutputKeys.OUTPUT_VIDEO]

Seed, numbers of frames, rate, sizes, solver and file names are those of the model's configuration.json.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from i2vgen.checkpoints.folders import FolderSettings
from i2vgen.checkpoints.released import RELEASED
from i2vgen.media import check_writable, load_image, load_video, write_video
from i2vgen.pipelines import I2VGenXLPipeline, ModelError, VideoRefinePipeline
from i2vgen.pipelines.loading import default_device, parse_device, parse_dtype, released_folder

logger = logging.getLogger(__name__)

FPS = 8  # of the written file, where configuration.json names none
DEFAULT_CACHE = "~/.cache/modelscope"
MODEL_ID = re.compile(r"[\w-]+/[\w.-]+")


class OutputKeys:
    OUTPUT_VIDEO = "output_video"


class Tasks:
    image_to_video = "image-to-video"
    video_to_video = "video-to-video"


def pipeline(
    task: str | None = None,
    model: str | os.PathLike | None = None,
    *,
    model_revision: str | None = None,
    device: str | torch.device = "gpu",
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    **ignored: Any,
) -> ImageToVideoPipeline | VideoToVideoPipeline:
    """A callable for a task; what ModelScope's function has beside these arguments is ignored, with a warning.

    Args:
        task: "image-to-video" or "video-to-video"; None takes that of the model's configuration.json.
        model: a folder, or a ModelScope id, looked up in ModelScope's cache and else downloaded by the
            `modelscope` package where that is installed. None means the task's own model.
        device: "gpu" is the best at hand; a CUDA device that is not there falls back, with a warning.
        dtype: None means bfloat16 on a GPU that has it, float32 elsewhere.
        exact: reproduce ModelScope's code end to end, its plain defects included; see `i2vgen.pipelines.exact`.

    Raises ValueError for an unknown task or device, ModelError for a model that cannot be had or used.
    """
    known = " and ".join(repr(name) for name in PIPELINES)
    if task is not None and task not in PIPELINES:
        raise ValueError(f"task {task!r} is unknown, there are {known}")
    if model is None and task is None:
        raise ValueError(f"task: name one of {known}, or a model")
    for name in ignored:
        logger.warning("pipeline: %s is ignored", name)
    path = local_model(RELEASED_IDS[task] if model is None else str(model), model_revision)
    released = released_folder(path)
    if task is None:
        if released is None or released.layout != "modelscope":
            raise ValueError(f"task: {str(path)!r} has no configuration.json that names one; give {known}")
        task = RELEASED[next(iter(released.unets))].task
    settings = FolderSettings() if released is None else released.settings
    return PIPELINES[task](path, settings, available_device(device), dtype, exact)


class TaskPipeline:
    """A model with the settings of its configuration.json, which are attributes and may be changed."""

    model_class: type

    def __init__(
        self,
        model: Path,
        settings: FolderSettings,
        device: torch.device,
        dtype: str | torch.dtype | None,
        exact: bool,
    ):
        self.model = self.model_class.from_pretrained(model, torch_dtype=parse_dtype(dtype, device)).to(device)
        self.seed = secrets.randbelow(100_000) if settings.seed is None else settings.seed  # as ModelScope does
        self.fps = settings.target_fps or FPS
        self.max_frames = settings.num_frames
        self.exact = exact


class ImageToVideoPipeline(TaskPipeline):
    """Calls take a picture, anything that `i2vgen.media.load_image` takes, or a list of them."""

    model_class = I2VGenXLPipeline

    def __call__(
        self, picture: Any, output_video: str | os.PathLike | None = None, seed: int | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Animate a picture. `seed` takes the place of that of configuration.json, for this call.

        Returns {OutputKeys.OUTPUT_VIDEO: `output_video` once it is written, or the MP4's bytes for None}.
        """
        if isinstance(picture, list):
            return _each(self, picture, output_video, seed)
        if isinstance(picture, dict):
            raise ValueError("image-to-video takes a picture or its path, got a dict")
        image = load_image(picture)
        _check_output(output_video)
        frames = self.model(image=image, generator=_generator(seed, self.seed), exact=self.exact).frames[0]
        return _written(frames, output_video, self.fps)


class VideoToVideoPipeline(TaskPipeline):
    """Calls take {"video_path": ..., "text": ...}, the text being optional, or a list of these."""

    model_class = VideoRefinePipeline

    def __call__(
        self,
        source: dict[str, Any] | list[dict[str, Any]],
        output_video: str | os.PathLike | None = None,
        seed: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Refine the first frames of a video, as many as configuration.json says; else as `ImageToVideoPipeline`."""
        if isinstance(source, list):
            return _each(self, source, output_video, seed)
        if not isinstance(source, dict) or "video_path" not in source:
            raise ValueError(f"video-to-video takes {{'video_path': ..., 'text': ...}}, got {source!r:.200}")
        for name in source:
            if name not in ("video_path", "text"):
                raise ValueError(f"video-to-video: unknown entry {name!r}; use 'video_path' and 'text'")
        video = load_video(source["video_path"], max_frames=self.max_frames)
        _check_output(output_video)
        frames = self.model(
            prompt=source.get("text") or "",
            video=video.frames,
            height=self.model.options.height,
            width=self.model.options.width,
            generator=_generator(seed, self.seed),
            exact=self.exact,
        ).frames[0]
        return _written(frames, output_video, self.fps)


PIPELINES = {Tasks.image_to_video: ImageToVideoPipeline, Tasks.video_to_video: VideoToVideoPipeline}
RELEASED_IDS = {Tasks.image_to_video: "damo/Image-to-Video", Tasks.video_to_video: "damo/Video-to-Video"}


def local_model(model: str, revision: str | None = None) -> Path:
    """The folder of a path or ModelScope id, downloaded only where it is not in ModelScope's cache.

    Raises ModelError saying how to get the model.
    """
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    if not MODEL_ID.fullmatch(model) or ".." in model:
        raise ModelError(f"model: no folder at {model!r}; give one, or a ModelScope id such as damo/Image-to-Video")
    for folder in cache_folders(model):
        if (folder / "configuration.json").is_file():
            return folder
    version = f" --revision {revision}" if revision else ""
    try:
        download = importlib.import_module("modelscope.hub.snapshot_download").snapshot_download
    except ImportError:
        looked = ", ".join(str(folder.parent) for folder in cache_folders(model))
        raise ModelError(
            f"model: {model!r} is not in ModelScope's cache ({looked}). Get it with "
            f"'pip install modelscope' and 'modelscope download --model {model}{version}', or give its folder as model"
        ) from None
    try:
        return Path(download(model, revision=revision) if revision else download(model))
    except Exception as error:  # of many kinds: network, credentials, disk
        raise ModelError(f"model: {model!r} could not be downloaded from ModelScope: {error}") from error


def cache_folders(model: str) -> list[Path]:
    """Where versions of the `modelscope` package keep a model."""
    root = Path(os.environ.get("MODELSCOPE_CACHE") or DEFAULT_CACHE).expanduser()
    name = model.replace(".", "___")
    return [root / part / name for part in ("hub", "", "hub/models", "models")]


def available_device(device: str | torch.device) -> torch.device:
    """`device`, or the best at hand where this machine has no CUDA; "gpu" is ModelScope's word for "cuda"."""
    name = "cuda" + str(device).removeprefix("gpu") if str(device).startswith("gpu") else str(device)
    if name.startswith("cuda") and not torch.cuda.is_available():
        found = default_device()
        logger.warning("device %r: this machine has no CUDA, using %s", str(device), found)
        return found
    return parse_device(name)


def _generator(seed: int | None, default: int) -> torch.Generator:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return torch.Generator().manual_seed(default if seed is None else seed)


def _each(pipe: Any, sources: list, output_video: Any, seed: int | None) -> list[dict[str, Any]]:
    if output_video is not None and len(sources) > 1:
        raise ValueError(f"output_video: one file for {len(sources)} videos; call once for each")
    return [pipe(source, output_video=output_video, seed=seed) for source in sources]


def _check_output(output_video: str | os.PathLike | None) -> None:
    if output_video is not None:
        check_writable(output_video)


def _written(frames: list, output_video: str | os.PathLike | None, fps: int) -> dict[str, Any]:
    pixels = np.stack([np.asarray(frame) for frame in frames])
    if output_video is not None:
        write_video(output_video, pixels, fps)
        return {OutputKeys.OUTPUT_VIDEO: str(output_video)}
    with tempfile.TemporaryDirectory() as folder:
        return {OutputKeys.OUTPUT_VIDEO: write_video(Path(folder) / "output.mp4", pixels, fps).read_bytes()}
