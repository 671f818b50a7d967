"""The routes around the videos: how the service is, which models it has, its numbers, its description."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.responses import Response

from i2vgen.server.caller import Caller, caller
from i2vgen.server.errors import ApiError
from i2vgen.server.page import api_page
from i2vgen.server.schemas import ModelDocument, ModelList, State, errors
from i2vgen.server.service import Service

router = APIRouter()
AsCaller = Annotated[Caller, Depends(caller)]
MADE = 1_700_000_000  # the paper's month; a model's files do not say when they were made


@router.get("/health", tags=["service"], summary="Whether the process answers")
def health() -> State:
    return State(status="ok")


@router.get("/ready", tags=["service"], responses={503: {"model": State}}, summary="Whether new videos would be made")
def ready(request: Request) -> State:
    reason = _service(request).not_ready_because()
    if reason is not None:
        return JSONResponse({"status": reason}, 503)
    return State(status="ready")


@router.get("/metrics", tags=["service"], response_class=Response, summary="Numbers for Prometheus")
def metrics(request: Request) -> Response:
    service = _service(request)
    if not service.config.has_metrics:
        raise ApiError(404, "metrics are off", "not_found")
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", tags=["models"], responses=errors(), summary="Models that are served")
def list_models(request: Request, who: AsCaller) -> ModelList:
    return ModelList(data=[_model(name) for name in _service(request).config.model.served_names])


@router.get("/v1/models/{name:path}", tags=["models"], responses=errors(404), summary="One of them")
def retrieve_model(request: Request, name: str, who: AsCaller) -> ModelDocument:
    if name not in _service(request).config.model.served_names:
        raise ApiError(404, f"model {name[:80]!r}: there is none of this name", "model_not_found", "model")
    return _model(name)


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(api_page(request.app.openapi()))


def _model(name: str) -> ModelDocument:
    return ModelDocument(id=name, created=MADE, owned_by="i2vgen")


def _service(request: Request) -> Service:
    return request.app.state.service
