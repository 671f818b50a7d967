"""The routes of /v1/videos, as OpenAI's Videos API has them."""

from __future__ import annotations

import asyncio
import io
import re
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from i2vgen.server.bodies import PICTURE, Body, read_body
from i2vgen.server.caller import Caller, caller, check_rate
from i2vgen.server.database import COMPLETED, FAILED
from i2vgen.server.errors import ApiError
from i2vgen.server.files import ID_PATTERN
from i2vgen.server.jobs import Job, NewJob
from i2vgen.server.pictures import as_png, read_picture
from i2vgen.server.requests import parse_fields, settle
from i2vgen.server.schemas import DeletedVideo, VideoDocument, VideoPage, errors, request_body, video_document
from i2vgen.server.service import Service
from i2vgen.server.streaming import file_response

SYNC_POLL_SECONDS = 0.1

router = APIRouter(prefix="/v1/videos", tags=["videos"])
AsCaller = Annotated[Caller, Depends(caller)]
Repeat = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same key and body again give the job of the first time."),
]
Variant = Literal["video", "thumbnail", "spritesheet", "contact_sheet"]
BINARY = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "image/jpeg")}}


@router.post(
    "", responses=errors(400, 404, 408, 409, 413, 415, 503), openapi_extra=request_body(), summary="Ask for a video"
)
async def create_video(request: Request, who: AsCaller, repeat: Repeat = None) -> VideoDocument:
    job = await _create(request, who, repeat)
    return video_document(job, _service(request).config)


@router.post(
    "/sync",
    responses={200: BINARY, **errors(400, 404, 408, 409, 413, 415, 500, 503, 504)},
    response_class=Response,
    openapi_extra=request_body(),
    summary="Ask for a video and wait for it",
)
async def create_video_and_wait(request: Request, who: AsCaller, repeat: Repeat = None) -> Response:
    """The answer is the MP4. Whoever hangs up cancels the job; its id is in the header X-Video-Id."""
    service = _service(request)
    job = await _create(request, who, repeat)
    end = asyncio.get_running_loop().time() + service.config.limits.sync_seconds
    while job.status not in (COMPLETED, FAILED):
        if await request.is_disconnected():
            await run_in_threadpool(_remove, service, job.id, who.owner)
            raise ApiError(400, "the caller has gone", "cancelled")
        if asyncio.get_running_loop().time() > end:
            message = f"not finished after {service.config.limits.sync_seconds:g} s; {job.id} goes on: poll it"
            raise ApiError(504, message, "timeout")
        await asyncio.sleep(SYNC_POLL_SECONDS)
        found = await run_in_threadpool(service.jobs.get, job.id, who.owner)
        if found is None:
            raise ApiError(404, "the video was deleted while it was made", "video_deleted")
        job = found
    if job.status == FAILED:
        status = 400 if job.error_code == "content_policy_violation" else 500
        raise ApiError(status, job.error_message or "the video could not be made", job.error_code)
    response = await run_in_threadpool(file_response, request, service.files, job, "video")
    response.headers["X-Video-Id"] = job.id
    return response


@router.get("", responses=errors(400), summary="List videos")
def list_videos(
    request: Request,
    who: AsCaller,
    after: Annotated[str | None, Query(description="The last id of the page before.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> VideoPage:
    service = _service(request)
    found = None
    if not after or ID_PATTERN.fullmatch(after):
        found = service.jobs.page(who.owner, after or None, limit, order == "asc")
    if found is None:
        raise ApiError(400, f"after {after!r}: there is no such video", "invalid_value", "after")
    jobs, has_more = found
    ids = [job.id for job in jobs] or [None]
    documents = [video_document(job, service.config) for job in jobs]
    return VideoPage(data=documents, has_more=has_more, first_id=ids[0], last_id=ids[-1])


@router.get("/{video_id}", responses=errors(404), summary="How a video stands")
def retrieve_video(request: Request, video_id: str, who: AsCaller) -> VideoDocument:
    service = _service(request)
    return video_document(_job(service, video_id, who.owner), service.config)


@router.delete("/{video_id}", responses=errors(404), summary="Delete a video, or cancel it")
def delete_video(request: Request, video_id: str, who: AsCaller) -> DeletedVideo:
    service = _service(request)
    _job(service, video_id, who.owner)
    if not _remove(service, video_id, who.owner):
        raise _unknown(video_id)
    return DeletedVideo(id=video_id)


@router.api_route(
    "/{video_id}/content",
    methods=["GET"],
    responses={200: BINARY, 206: BINARY, 304: {"description": "Not modified"}, **errors(400, 404, 409, 416)},
    response_class=Response,
    summary="Download a video, its thumbnail or its contact sheet",
)
@router.head("/{video_id}/content", include_in_schema=False)
def download_content(request: Request, video_id: str, who: AsCaller, variant: Variant = "video") -> Response:
    service = _service(request)
    job = _job(service, video_id, who.owner)
    if job.status == FAILED:
        raise ApiError(409, f"the video failed: {job.error_message}", "video_failed")
    if job.status != COMPLETED:
        raise ApiError(409, "the video is not finished: poll it until its status is completed", "video_not_ready")
    return file_response(request, service.files, job, "spritesheet" if variant == "contact_sheet" else variant)


async def _create(request: Request, who: Caller, repeat: str | None) -> Job:
    service = _service(request)
    if repeat is not None and not re.fullmatch(r"[\x21-\x7e]{1,200}", repeat):
        raise ApiError(400, "Idempotency-Key: give 1 to 200 printable ASCII characters", "invalid_value")
    check_rate(service, who.owner, "videos", who.videos_per_minute)
    await run_in_threadpool(service.check_open)
    body = await read_body(request, service.config.limits)
    return await run_in_threadpool(_enqueue, service, who, body, repeat, request.state.request_id)


def _enqueue(service: Service, who: Caller, body: Body, repeat: str | None, request_id: str) -> Job:
    """The picture goes to the store before the row to the queue: a worker finds both."""
    config, facts = service.config, service.facts()
    wanted = parse_fields(body.fields, config.model.served_names, facts, config.limits)
    picture = read_picture(body.picture, config.limits.max_image_pixels)
    size, shape = settle(wanted, picture.size, facts, config.limits)
    png = as_png(picture)
    new = NewJob(
        owner=who.owner,
        request=asdict(wanted),
        shape=shape,
        size=size,
        seconds=wanted.seconds,
        model=service.model,
        num_bytes=len(png),
        request_id=request_id,
        repeat_key=repeat,
        repeat_hash=None if repeat is None else body.digest,
    )
    is_new = False
    try:
        service.files.put(new.id, "input.png", io.BytesIO(png))
        job, is_new = service.jobs.create(new, config.limits.max_queued, who.max_queued)
    except OSError as error:
        raise ApiError(503, f"{PICTURE} could not be stored: try again later", "storage_failed") from error
    finally:
        if not is_new:
            with suppress(OSError):
                service.files.remove(new.id)
    return job


def _remove(service: Service, id: str, owner: str) -> bool:
    is_removed = service.jobs.remove(id, owner) is not None
    if is_removed:
        service.files.remove(id)
    return is_removed


def _service(request: Request) -> Service:
    return request.app.state.service


def _job(service: Service, video_id: str, owner: str) -> Job:
    # Only ids of our form go to the database; what goes to the store comes from there.
    job = service.jobs.get(video_id, owner) if ID_PATTERN.fullmatch(video_id) else None
    if job is None:
        raise _unknown(video_id)
    return job


def _unknown(video_id: str) -> ApiError:
    return ApiError(404, f"video {video_id[:80]!r}: there is none with this id", "video_not_found", "video_id")
