"""Every error as an HTTP status and a body of OpenAI's form."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from aioembed.errors import (
    AioembedError,
    ForwardTimeout,
    ImageDecodeError,
    ImageFetchFailed,
    ImageTooLarge,
    IncompatibleSpaces,
    InvalidConfig,
    InvalidModelOutput,
    InvalidUserInput,
    ModelBusy,
    UnknownModel,
    UnsupportedImageFormat,
)

from .schemas import ErrorBody, ErrorDetail, ItemError

__all__ = ["Problem", "code_of", "problem_of", "status_of", "too_many_inputs"]

_STATUSES: Mapping[type[AioembedError], int] = {
    ImageTooLarge: 413,
    UnsupportedImageFormat: 415,
    ImageDecodeError: 422,
    ImageFetchFailed: 422,
    InvalidUserInput: 400,
    InvalidModelOutput: 422,
    IncompatibleSpaces: 400,
    InvalidConfig: 400,
    UnknownModel: 404,
    ModelBusy: 429,
    ForwardTimeout: 504,
}
"""The first family that an error belongs to counts; any other error is 503."""

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_RETRY_SECONDS = "1"
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Problem(Exception):
    """A request that gets an error for an answer.

    It is no HTTPException, which the application around the router would answer in its own form.

    Args:
        status: Of the answer.
        message: What was wrong and what to do.
        code: The name of the error, for programs.
        param: The field of the request that is at fault.
        items: Which inputs are at fault.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        items: tuple[ItemError, ...] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        waits = {"Retry-After": _RETRY_SECONDS} if status in {429, 503} else {}
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = {**waits, **(headers or {})}
        self.body: ErrorBody = ErrorBody(
            error=ErrorDetail(
                message=message, type=_type_of(status), param=param, code=code, items=items
            )
        )

    def response(self) -> JSONResponse:
        """Return the answer."""
        content = self.body.model_dump(mode="json")
        return JSONResponse(content, self.status, headers=self.headers)


def too_many_inputs(count: int, most: int, *, param: str) -> Problem:
    """Return the answer to a request with more inputs than the limit."""
    message = f"{count} inputs, and {most} is the most in one request: send several"
    return Problem(400, message, code="too_many_inputs", param=param)


def status_of(error: AioembedError) -> int:
    """Return the status that tells of an error."""
    statuses = (status for family, status in _STATUSES.items() if isinstance(error, family))
    return next(statuses, 503)


def code_of(error: AioembedError) -> str:
    """Return an error's name in OpenAI's manner, such as `image_too_large`."""
    return _HUMP.sub("_", type(error).__name__).lower()


def problem_of(error: Exception) -> Problem:
    """Return the answer to an error that ended a request.

    Args:
        error: Of this library, Starlette's own, or a defect, about which the answer says nothing.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, AioembedError):
        return Problem(status_of(error), str(error), code=code_of(error))
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, "bad_request")
        return Problem(error.status_code, error.detail, code=code, headers=error.headers)
    return Problem(500, "the server has a defect; its log says more", code="internal_error")


def _type_of(status: int) -> str:
    default = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    return _TYPES.get(status, default)
