"""The documents that the API takes and gives, for its OpenAPI description, and how a job becomes one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from i2vgen.pipelines.presets import PRESETS
from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import COMPLETED
from i2vgen.server.jobs import Job
from i2vgen.server.requests import PARAMETERS


class VideoError(BaseModel):
    code: str
    message: str


class VideoDocument(BaseModel):
    """A job and, once it is completed, its video. Times in seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    prompt: str
    negative_prompt: str | None
    size: str
    seconds: str
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    refine: bool
    refine_steps: int | None
    seed: int
    remixed_from_video_id: str | None = None
    ignored: list[str]


class VideoPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[VideoDocument]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelDocument(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelDocument]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(BaseModel):
    error: ErrorBody


class State(BaseModel):
    status: str


def video_document(job: Job, config: ServiceConfig) -> VideoDocument:
    request, retention = job.request, config.limits.retention_seconds
    error = None
    if job.error_code is not None:
        error = VideoError(code=job.error_code, message=job.error_message or "")
    names = ("model", "prompt", "negative_prompt", "num_frames", "fps", "num_inference_steps", "guidance_scale")
    names += ("refine", "refine_steps", "seed")
    return VideoDocument(
        id=job.id,
        status=job.status,
        progress=100 if job.status == COMPLETED else min(99, int(100 * job.progress)),
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=int(job.completed_at + retention) if job.completed_at and retention else None,
        error=error,
        size=job.size,
        seconds=job.seconds,
        ignored=list(request["ignored"]),
        **{name: request[name] for name in names},
    )


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that are errors, for its description."""
    return {status: {"model": ErrorDocument} for status in (401, 403, 421, 429, *statuses)}


def request_body() -> dict[str, Any]:
    """The description of a request for a video, as form or as JSON."""
    form, document = {}, {}
    for name, parameter in PARAMETERS.items():
        if parameter.kind == "file":
            form[name] = {"type": "string", "format": "binary", "description": parameter.meaning}
            url = {"type": "object", "properties": {"image_url": {"type": "string"}}, "required": ["image_url"]}
            document[name] = url | {"description": parameter.meaning}
            continue
        described = {"type": parameter.kind, "description": parameter.meaning}
        if name == "preset":
            described["enum"] = list(PRESETS)
        if parameter.example is not None:
            described["example"] = parameter.example
        form[name] = document[name] = described
    required = ["prompt", "input_reference"]
    contents = {"multipart/form-data": form, "application/json": document}
    schemas = {
        kind: {"schema": {"type": "object", "properties": properties, "required": required}}
        for kind, properties in contents.items()
    }
    return {"requestBody": {"required": True, "content": schemas}}
