"""The HTTP application: routes, and every error in one shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from i2vgen import __version__
from i2vgen.server import system, videos
from i2vgen.server.access import Access
from i2vgen.server.errors import ApiError, error_document
from i2vgen.server.service import Service

logger = logging.getLogger(__name__)

DESCRIPTION = "Turns a picture and a line of text into a video. The shape is that of OpenAI's Videos API."


def create_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="i2vgen",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(videos.router)
    app.include_router(system.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(SQLAlchemyError, _database_error)
    app.add_exception_handler(Exception, _defect)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Range", "X-Request-Id"],
            expose_headers=["Content-Range", "ETag", "Retry-After", "X-Request-Id", "X-Video-Id"],
        )
    app.add_middleware(Access, service=service)
    return app


async def _api_error(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.document(), error.status, error.headers)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    texts = {404: "there is nothing at this address", 405: "this address does not take this method"}
    message = texts.get(error.status_code, str(error.detail))
    return JSONResponse(error_document(error.status_code, message), error.status_code, error.headers)


async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return JSONResponse(error_document(400, f"{field}: {first['msg']}", "invalid_value", field), 400)


async def _database_error(request: Request, error: SQLAlchemyError) -> JSONResponse:
    logger.error("request %s: the database does not answer", request.state.request_id, exc_info=error)
    document = error_document(503, "the service's database does not answer: try again", "database_unavailable")
    return JSONResponse(document, 503, {"Retry-After": "2"})


async def _defect(request: Request, error: Exception) -> JSONResponse:
    logger.error("request %s: a defect", request.state.request_id, exc_info=error)
    message = f"an error inside the service; tell its operator request {request.state.request_id}"
    return JSONResponse(error_document(500, message, "internal_error"), 500)
