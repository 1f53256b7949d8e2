"""Every error as an HTTP status, in words for HTTP clients, in the form of the request's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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
    SourceRefused,
    TextTooLong,
    UnknownModel,
    UnsupportedImageFormat,
)

__all__ = [
    "Problem",
    "Shape",
    "code_of",
    "invalid",
    "problem_of",
    "status_of",
    "too_many_inputs",
    "words_of",
]

Shape = Literal["openai", "jina", "cohere"]
"""The form of an error: OpenAI's `{"error": {...}}`, the same with Jina's `detail`, or Cohere's
`{"message": ...}`."""

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
_ADVICE_FOR_PROGRAMS = re.compile(
    r"[:.;,] (?:\w[^:.;]*)?(?:SourcePolicy|[a-z_]+=[\w.\"]).*", re.DOTALL
)
_SHOWN_FAULTS = 3
_MOST_CHARACTERS = 1000


class Problem(Exception):
    """A request that is answered with an error.

    It is not an HTTPException, which the surrounding application would answer in its own form.

    Args:
        status: Of the answer.
        message: What was wrong and what to do.
        code: The name of the error, for programs.
        param: The field of the request that is at fault.
        items: Which inputs are at fault: `index`, `code` and `message` of each.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        items: list[dict[str, object]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        waits = {"Retry-After": _RETRY_SECONDS} if status in {429, 503} else {}
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[:_MOST_CHARACTERS]}…"
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = {**waits, **(headers or {})}
        self.message = message
        self._details: dict[str, object] = {"param": param, "code": code, "items": items}

    def response(self, shape: Shape, request_id: str) -> JSONResponse:
        """Return the answer in the form that a shape's clients read."""
        content: dict[str, object]
        if shape == "cohere":
            content = {"id": request_id, "message": self.message, **self._details}
        else:
            content = {
                "error": {
                    "message": self.message,
                    "type": _type_of(self.status),
                    **self._details,
                }
            }
            if shape == "jina":
                content["detail"] = self.message
        return JSONResponse(content, self.status, headers=self.headers)


def too_many_inputs(count: int, most: int, *, param: str) -> Problem:
    """Return the answer to a request with more inputs than the limit."""
    message = f"{count} inputs, and {most} is the most in one request: send several"
    return Problem(400, message, code="too_many_inputs", param=param)


def status_of(error: AioembedError) -> int:
    """Return the status that an error has."""
    statuses = (status for family, status in _STATUSES.items() if isinstance(error, family))
    return next(statuses, 503)


def code_of(error: AioembedError) -> str:
    """Return an error's name in OpenAI's manner, such as `image_too_large`."""
    return _HUMP.sub("_", type(error).__name__).lower()


def words_of(error: AioembedError) -> str:
    """Return an error's message for an HTTP client, without names and paths of the server."""
    if isinstance(error, TextTooLong):
        said = _without_advice(error)
        return said if "shorten" in said else f"{said}: shorten it, or ask for truncation"
    if isinstance(error, SourceRefused):
        if error.rule == "malformed":  # which no server takes
            return error.problem
        return (
            f"this server does not take images from there (rule {error.rule}): send an http(s) "
            "URL of a public host, a data URI, base64 or a file"
        )
    if isinstance(error, InvalidUserInput | ModelBusy | ForwardTimeout | IncompatibleSpaces):
        return _without_advice(error).replace("the source policy's", "this server's")
    return f"the model could not do it ({code_of(error)}); the server's log says more"


def problem_of(error: Exception) -> Problem:
    """Return the answer to an error that ended a request.

    Args:
        error: Of this library, Starlette's own, or a defect, about which the answer says nothing.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, AioembedError):
        return Problem(status_of(error), words_of(error), code=code_of(error))
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, "bad_request")
        return Problem(error.status_code, str(error.detail), code=code, headers=error.headers)
    return Problem(500, "the server has a defect; its log says more", code="internal_error")


def invalid(faults: Iterable[Mapping[str, Any]]) -> Problem:
    """Return the answer to a body that is not what the schema says.

    Args:
        faults: As pydantic lists them.
    """
    listed = list(faults)
    said = "; ".join(f"{_place(one['loc'])}: {_said(one)}" for one in listed[:_SHOWN_FAULTS])
    more = f"; and {len(listed) - _SHOWN_FAULTS} more" if len(listed) > _SHOWN_FAULTS else ""
    place = [part for part in listed[0]["loc"] if part != "body"]
    param = str(place[0])[:64] if place else None
    return Problem(400, said + more, code="invalid_request", param=param)


def _said(fault: Mapping[str, Any]) -> str:
    text = str(fault["msg"]).removeprefix("Value error, ")
    return text.replace("a valid dictionary or object to extract fields from", "an object")


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:64] for part in location if part != "body") or "the body"


def _without_advice(error: AioembedError) -> str:
    """Leave out what a Python program could do about it."""
    return _ADVICE_FOR_PROGRAMS.sub("", str(error))


def _type_of(status: int) -> str:
    default = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    return _TYPES.get(status, default)
