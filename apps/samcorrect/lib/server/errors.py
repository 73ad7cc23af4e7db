"""Errors as HTTP: the one place that turns an exception into a status and a JSON body `{"error": ..., "detail": ...}`.

The host has no handler at all: without this one its clients see "Internal Server Error" for a misspelt image id.
"""

import logging
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from json import JSONDecodeError

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from samcorrect.lib.errors import (
    ConflictError,
    DependencyError,
    ImageError,
    LabelError,
    ProtocolError,
    RequestError,
    SamCorrectError,
    SettingsError,
    StoreError,
    UnknownImageError,
    UnknownLabelError,
    UnknownModelError,
    WeightsError,
)

logger = logging.getLogger(__name__)

# The first class that an error is an instance of decides.
STATUS_OF_ERROR: dict[type[SamCorrectError], HTTPStatus] = {
    ConflictError: HTTPStatus.CONFLICT,
    RequestError: HTTPStatus.BAD_REQUEST,
    UnknownImageError: HTTPStatus.NOT_FOUND,
    UnknownLabelError: HTTPStatus.NOT_FOUND,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    ImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    LabelError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ProtocolError: HTTPStatus.CONFLICT,
    SettingsError: HTTPStatus.CONFLICT,
    WeightsError: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreError: HTTPStatus.SERVICE_UNAVAILABLE,
    DependencyError: HTTPStatus.NOT_IMPLEMENTED,
}
WRITING_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# (method, route, status, error class, client's address, image id or None)
OnRefusal = Callable[[str, str, int, str, str, str | None], None]
# APP_INIT_ERROR is what the host raises for a strategy that it does not know.
STATUS_OF_HOST_ERROR = {
    MONAILabelError.INVALID_INPUT: HTTPStatus.BAD_REQUEST,
    MONAILabelError.APP_INIT_ERROR: HTTPStatus.NOT_FOUND,
}
INTERNAL_DETAIL = "samcorrect failed on this request; the server's log has the reason"


def add_error_handlers(app: FastAPI, on_refusal: OnRefusal = lambda *_told: None) -> None:
    """Answer every error with JSON that names what is wrong; the middleware stack must be rebuilt afterwards.

    Args:
        app: The host's application.
        on_refusal: Told, after the reply, of every request that would have written and was refused.
    """
    app.state.on_refusal = on_refusal
    app.add_exception_handler(SamCorrectError, _samcorrect_error)
    app.add_exception_handler(MONAILabelException, _host_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(JSONDecodeError, _json_error)
    app.add_exception_handler(Exception, _unexpected_error)


def _samcorrect_error(request: Request, error: SamCorrectError) -> JSONResponse:
    status = next(
        (s for kind, s in STATUS_OF_ERROR.items() if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return _reply(request, status, type(error).__name__, str(error))


def _host_error(request: Request, error: MONAILabelException) -> JSONResponse:
    status = STATUS_OF_HOST_ERROR.get(error.error, HTTPStatus.INTERNAL_SERVER_ERROR)
    return _reply(request, status, error.error.value, error.msg)


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error.__cause__, OSError):
        # FastAPI calls a body that it cannot keep, for want of space, one that it cannot read.
        reason = f"cannot keep the upload in {tempfile.gettempdir()}: {error.__cause__.strerror}"
        return _reply(request, HTTPStatus.SERVICE_UNAVAILABLE, StoreError.__name__, reason)
    reply = _reply(request, error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))
    reply.headers.update(error.headers or {})
    return reply


def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return _reply(request, HTTPStatus.UNPROCESSABLE_ENTITY, "RequestError", "; ".join(faults))


def _json_error(request: Request, error: JSONDecodeError) -> JSONResponse:
    return _reply(request, HTTPStatus.BAD_REQUEST, "RequestError", f"a parameter of the request is not JSON: {error}")


def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after the reply, and uvicorn logs it with its traceback.
    return JSONResponse({"error": "InternalError", "detail": INTERNAL_DETAIL}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _reply(request: Request, status: int, error: str, detail: str) -> JSONResponse:
    # Neither path, query nor detail: they are the client's, and image ids can hold the names of patients.
    route = getattr(request.scope.get("route"), "path", "unknown route")
    logger.warning("%s %s: %d %s", request.method, route, status, error)
    told = None
    if request.method in WRITING_METHODS and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        client = request.client.host if request.client else "unknown"
        # After the reply and in a thread: the ledger may be busy, and nobody has to wait for it.
        of = (request.method, route, int(status), error, client, request.query_params.get("image"))
        told = BackgroundTask(request.app.state.on_refusal, *of)
    return JSONResponse({"error": error, "detail": detail}, status, background=told)
