"""Errors as OpenAI's endpoints tell them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    BusyError,
    CheckpointError,
    ConfigError,
    StateError,
    StorageError,
    SVFitError,
)

logger = logging.getLogger(__name__)

_KINDS: dict[type[SVFitError], tuple[int, str, str]] = {
    BaseMismatchError: (400, "invalid_request_error", "adapter_of_another_base"),
    CheckpointError: (400, "invalid_request_error", "adapter_unusable"),
    AdapterNameError: (404, "invalid_request_error", "adapter_not_found"),
    ConfigError: (400, "invalid_request_error", "invalid_value"),
    BusyError: (429, "rate_limit_error", "too_many_waiting"),
    StorageError: (503, "server_error", "library_unreachable"),
    StateError: (503, "server_error", "stopping"),
}
"""Status, type and code of an error; the first that fits counts."""

_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_MOST_CHARACTERS = 500


def add_error_handlers(app: FastAPI) -> None:
    """Let all errors of an app be told in OpenAI's shape."""
    app.add_exception_handler(SVFitError, _told)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _unexpected)


def error_response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> JSONResponse:
    """An answer that says what is wrong."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"error": error}, status, headers)


def _told(_: Request, error: Exception) -> JSONResponse:
    for kind, (status, name, code) in _KINDS.items():
        if isinstance(error, kind):
            if status >= 500:
                logger.error("a request failed: %s", error)
            return error_response(status, _message(error), name, code)
    if isinstance(error, ValueError):  # as those are that come of what was given
        return error_response(400, _message(error), code="invalid_value")
    return _unexpected(_, error)


def _message(error: Exception) -> str:
    """What is wrong, on one line and without places of this machine."""
    if isinstance(error, BaseMismatchError):
        return "the adapter was trained on another base model than the one served here"
    if isinstance(error, StorageError):
        return "the library of adapters cannot be reached or has no room: try again later"
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"


def _malformed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str | int))
    message = f"{param or 'the body'}: {first['msg']}"[:_MOST_CHARACTERS]
    return error_response(400, message, code="invalid_value", param=param[:64] or None)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code)
    return error_response(error.status_code, str(error.detail), code=code)


def _unexpected(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=error)
    return error_response(500, "something unexpected happened on the server", "server_error")
