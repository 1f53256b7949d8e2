"""A request's body, capped while it streams, as a checked value: JSON or a multipart form."""

from __future__ import annotations

from typing import TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from aioembed._tasks import run_in_thread

from .forms import form_fields
from .limits import ServerLimits
from .pace import Pace
from .problems import Problem, too_many_inputs

__all__ = ["capped", "read_body"]

_Model = TypeVar("_Model", bound=BaseModel)

_LISTS = frozenset(("input", "images", "texts", "labels", "prompts"))
"""Fields that may come several times in a form."""
_SHOWN_PROBLEMS = 3
_THREAD_BYTES = 1 << 18


def capped(scope: Scope, receive: Receive, limits: ServerLimits) -> Receive:
    """Return `receive`, refusing a body that is too large.

    Raises:
        Problem: The declared length is too large already.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    seen = 0

    async def receive_capped() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limits.max_body_bytes:
            raise _too_large(limits)
        return message

    return receive_capped


async def read_body(
    request: Request, schema: type[_Model], pace: Pace, limits: ServerLimits
) -> _Model:
    """Read a body and check it.

    Args:
        request: With a body in JSON or as a multipart form.
        schema: What it must be. In a form, files are bytes, and lists are repeated fields.
        pace: Waited for between the two.
        limits: How long it may take to arrive, and how many inputs it may have.

    Raises:
        Problem: It is neither, or not what the schema says, or it comes too slowly.
        ClientDisconnect: The client went away.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _READERS:
        raise Problem(
            415,
            "send application/json, or multipart/form-data with files",
            code="unsupported_content_type",
            headers={"Accept-Post": ", ".join(_READERS)},
        )
    body = await _arrived(request, limits)
    await pace.turn()

    def check() -> _Model:
        return _READERS[kind](body, content_type, schema, limits.max_inputs)

    try:
        return check() if len(body) < _THREAD_BYTES else await run_in_thread(check)
    except ValidationError as exc:
        raise _invalid(exc) from exc


async def _arrived(request: Request, limits: ServerLimits) -> bytes:
    with anyio.move_on_after(limits.body_timeout):
        return await request.body()
    raise Problem(
        408,
        f"the body did not arrive within {limits.body_timeout:g} s: send it faster",
        code="body_timeout",
        headers={"Connection": "close"},
    )


def _from_json(body: bytes, _content_type: str, schema: type[_Model], most: int) -> _Model:
    try:
        value = from_json(body, cache_strings="keys")
    except ValueError as exc:
        raise Problem(400, f"the body is no JSON: {exc}", code="invalid_json") from exc
    return _checked(value, schema, most)


def _from_form(body: bytes, content_type: str, schema: type[_Model], most: int) -> _Model:
    fields = form_fields(body, content_type)
    value = {
        name: values if name in _LISTS or len(values) > 1 else values[0]
        for name, values in fields.items()
    }
    return _checked(value, schema, most)


def _checked(value: object, schema: type[_Model], most: int) -> _Model:
    # A schema looks at each of them before it counts.
    fields = value if isinstance(value, dict) else {}
    for name in _LISTS:
        given = fields.get(name)
        if isinstance(given, list) and len(given) > most:
            raise too_many_inputs(len(given), most, param=name)
    return schema.model_validate(value)


_READERS = {"application/json": _from_json, "multipart/form-data": _from_form}


def _too_large(limits: ServerLimits) -> Problem:
    return Problem(
        413,
        f"a body may have at most {limits.max_body_bytes} bytes: send fewer or smaller images",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def _invalid(error: ValidationError) -> Problem:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    told = "; ".join(f"{_place(one['loc'])}: {one['msg']}" for one in problems[:_SHOWN_PROBLEMS])
    more = (
        f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    )
    param = str(first["loc"][0])[:64] if first["loc"] else None
    return Problem(400, told + more, code="invalid_request", param=param)


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:64] for part in location) or "the body"
