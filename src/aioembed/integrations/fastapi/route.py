"""What every request passes through: key, bounds, body, metrics, form of errors."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from aioembed.errors import InvalidConfig

from .limits import Load, Reservation, ServerLimits
from .metrics import Metrics
from .models import Models
from .problems import Problem, Shape, invalid, problem_of, too_many_inputs

__all__ = [
    "ApiKeys",
    "EmbeddingRoute",
    "Exchange",
    "OpenRoute",
    "Server",
    "form_fields",
    "observed",
]

_logger = logging.getLogger("aioembed.server")
_access = logging.getLogger("aioembed.access")

_LISTS = frozenset(("input", "images", "texts", "inputs", "labels", "prompts"))
"""Fields that hold inputs, and may come several times in a form."""
_MOST_VALUES = 256
"""In any other list."""
_THREAD_BYTES = 1 << 18
_LOOKED_AT = 16
_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")
_TOO_SLOW = 408
_CLIENT_CLOSED = 499
_DISCARDED_BYTES = 64 << 20
_DISCARDING_SECONDS = 1.0
_R = TypeVar("_R")


class ApiKeys:
    """The keys of which callers must send one, as `Authorization: Bearer KEY`.

    Args:
        keys: One or several; None requires no key.

    Raises:
        InvalidConfig: The list is empty, or a key in it is.
    """

    def __init__(self, keys: str | Iterable[str] | None) -> None:
        given = [keys] if isinstance(keys, str) else list(keys or ())
        if keys is not None and not (given and all(key.strip() for key in given)):
            raise InvalidConfig("an API key is empty: give one, or None for no key")
        self._digests = [_digest(key.encode()) for key in given]

    @property
    def are_required(self) -> bool:
        """Whether callers must send a key."""
        return bool(self._digests)

    def has_one(self, scope: Scope) -> bool:
        """Return whether a request carries one of the keys."""
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        digest = _digest(given.strip())
        found = [secrets.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == b"bearer" and any(found)

    def check(self, scope: Scope) -> None:
        """Refuse a request without a key, where one is required.

        Raises:
            Problem: 401.
        """
        if self.are_required and not self.has_one(scope):
            raise Problem(
                401,
                "send the server's key as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


@dataclass(eq=False)
class Server:
    """What the routes of a router share.

    Attributes:
        models: By name.
        limits: How much requests may ask for.
        keys: Of which callers must send one.
        metrics: Counts requests.
        load: What all requests hold together.
        is_strict: Whether fields that are not known are refused.
        is_stopping: Whether it stops, which ends the streams of states.
    """

    models: Models
    limits: ServerLimits
    keys: ApiKeys
    metrics: Metrics
    load: Load
    is_strict: bool = False
    is_stopping: bool = False
    _stopping: set[Callable[[], object]] = field(default_factory=set)

    def stop(self) -> None:
        """End the streams of states. Idempotent; called on the event loop's thread."""
        self.is_stopping = True
        for callback in tuple(self._stopping):
            callback()

    @contextmanager
    def on_stop(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call `callback` when the server stops while the body runs."""
        self._stopping.add(callback)
        try:
            yield
        finally:
            self._stopping.discard(callback)


@dataclass(eq=False)
class Exchange:
    """One request and what becomes of it; in its scope as `aioembed`.

    Attributes:
        server: The server that answers.
        shape: The form of an error.
        id: In the header `X-Request-ID` and in the log.
        reservation: The bytes of its body, where it has one.
        status: Of the answer, once there is one.
        is_read: Whether its body has been read to the end, or its client went away.
    """

    server: Server
    shape: Shape
    id: str
    reservation: Reservation | None = None
    status: int | None = None
    is_read: bool = False


class EmbeddingRoute(APIRoute):
    """A route that asks for the key and counts against the bounds before it reads a body.

    Attributes:
        server: Set by a subclass for each router.
        is_open: Whether it answers callers without a key.
        shape: The form of its errors.
        image_field: The field that a body which is an image stands for.
    """

    server: ClassVar[Server]
    is_open: ClassVar[bool] = False
    shape: ClassVar[Shape] = "openai"
    image_field: ClassVar[str | None] = None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            InvalidConfig: The application that answers is not FastAPI's, which the routes need.
        """
        if not isinstance(scope.get("app"), FastAPI):
            raise InvalidConfig(
                "router() answers in a FastAPI application only, by include_router: "
                "in any other ASGI application mount app()"
            )
        exchange = Exchange(self.server, self.shape, _request_id(scope))
        scope["aioembed"] = exchange
        with observed(exchange, scope, self.path):
            is_post = scope["method"] == "POST"
            sends_body = is_post and b"expect" not in dict(scope["headers"])
            sending = _sending(exchange, send, receive if sends_body else None)
            try:
                if not self.is_open:
                    self.server.keys.check(scope)
                if not is_post:
                    await super().handle(scope, receive, sending)
                    return
                with self.server.load.request(_declared(scope)) as exchange.reservation:
                    await super().handle(scope, _capped(receive, exchange), sending)
            except (Problem, HTTPException) as exc:
                answer = problem_of(exc).response(exchange.shape, exchange.id)
                await answer(scope, receive, sending)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers: FastAPI's own handler, given a body that has been read."""
        answer = super().get_route_handler()

        async def answer_in_own_form(request: Request) -> Response:
            exchange: Exchange = request.scope["aioembed"]
            try:
                if exchange.reservation is None:
                    return await answer(request)
                limits = exchange.server.limits
                value = await _read(request, exchange, self.image_field)
                return await _while_connected(
                    request,
                    lambda: answer(_Parsed(request, value)),
                    timeout=limits.request_timeout,
                )
            except ClientDisconnect:
                _logger.debug("%s: the client went away; its work was cancelled", exchange.id)
                return Response(status_code=_CLIENT_CLOSED)
            except RequestValidationError as exc:
                # The frames of a traceback refer to what they raised, and hold the body by it.
                problem = invalid(exc.with_traceback(None).errors())
            except Exception as exc:  # this is the boundary
                problem = problem_of(exc)
                if problem.status == 500:  # noqa: PLR2004
                    _logger.exception("%s failed by a defect", exchange.id)
                elif problem.status == 503:  # noqa: PLR2004
                    _logger.warning("%s: %s", exchange.id, exc)
                exc.with_traceback(None)
                problem.with_traceback(None)
            return problem.response(exchange.shape, exchange.id)

        return answer_in_own_form


class OpenRoute(EmbeddingRoute):
    """A route without a key, which answers HEAD as well as GET."""

    is_open = True

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "HEAD":
            await super().handle(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await super().handle({**scope, "method": "GET"}, receive, send_head)


class _Parsed(Request):
    """A request whose body has been read and is a value, whatever form it came in."""

    def __init__(self, request: Request, value: object) -> None:
        headers = [(b"content-type", b"application/json")]
        headers += [one for one in request.scope["headers"] if one[0] != b"content-type"]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._value = value

    async def body(self) -> bytes:
        """Return a placeholder; FastAPI calls `json` where the body is not empty."""
        return b"{}"

    async def json(self) -> object:
        """Return the value."""
        return self._value


@contextmanager
def observed(exchange: Exchange, scope: Scope, path: str) -> Iterator[None]:
    """Count a request and write a line of the access log."""
    metrics = exchange.server.metrics
    method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST"} else "other"
    began = time.perf_counter()
    metrics.running.inc()
    try:
        yield
    finally:
        metrics.running.dec()
        seconds = time.perf_counter() - began
        metrics.requests.labels(method, path, str(exchange.status or "none")).inc()
        metrics.seconds.labels(path).observe(seconds)
        if _access.isEnabledFor(logging.INFO):
            client = (scope.get("client") or ("-",))[0]
            shown = scope["path"].encode("ascii", "backslashreplace").decode()[:200]
            _access.info(
                "%s %s %s %s %.1f ms %s",
                *(client, scope["method"], repr(shown)[1:-1]),
                *(exchange.status or "-", seconds * 1e3, exchange.id),
            )


def _sending(exchange: Exchange, send: Send, receive: Receive | None) -> Send:
    """Return `send`, which adds the request's id and notes the status.

    Args:
        exchange: The request.
        send: The server's.
        receive: Of a request whose body is on its way. A server that closes a connection with
            unread bytes resets it, and the client may lose an answer that came early; what still
            arrives is read before the answer ends. None where the client waits for `100 Continue`.
    """

    def may_have_unread_bytes() -> bool:
        return not exchange.is_read and exchange.status != _TOO_SLOW

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            names = {name.lower() for name, _ in message["headers"]}
            added = [(b"x-request-id", exchange.id.encode())]
            if b"cache-control" not in names:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *added]}
        elif not message.get("more_body") and receive and may_have_unread_bytes():
            await send({**message, "more_body": True})
            await _discard(receive)
            message = {"type": "http.response.body"}
        await send(message)

    return sending


async def _discard(receive: Receive) -> None:
    """Read what still arrives of a body that was refused, for a short while."""
    left = _DISCARDED_BYTES
    with anyio.move_on_after(_DISCARDING_SECONDS):
        while left > 0:
            message = await receive()
            if not message.get("more_body"):
                return
            left -= len(message["body"])


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _declared(scope: Scope) -> int | None:
    declared = dict(scope["headers"]).get(b"content-length", b"")
    return int(declared) if declared.isdigit() and len(declared) < 19 else None  # noqa: PLR2004


def _capped(receive: Receive, exchange: Exchange) -> Receive:
    """Return `receive`, refusing a body that is too large."""

    async def receive_capped() -> Message:
        message = await receive()
        exchange.is_read = not message.get("more_body")
        if exchange.reservation is not None:
            exchange.reservation.arrived(len(message.get("body", b"")))
        return message

    return receive_capped


async def _read(request: Request, exchange: Exchange, image_field: str | None) -> object:
    """Return a body as a value: JSON, a form's fields, or an image as the field it stands for.

    Raises:
        Problem: Another form, too large, or too slow.
        ClientDisconnect: The client went away.
    """
    limits = exchange.server.limits
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    timeout = Problem(
        408,
        f"the body did not arrive within {limits.body_timeout:g} s: send it faster",
        code="body_timeout",
        headers={"Connection": "close"},
    )
    with anyio.move_on_after(limits.body_timeout):
        if kind == "application/json" or (
            kind.startswith("application/") and kind.endswith("+json")
        ):
            value = await _parsed(await request.body())
        elif kind == "multipart/form-data":
            value = await form_fields(request, limits.max_inputs)
        elif kind.startswith("image/") and image_field is not None:
            value = {image_field: await request.body()}
        else:
            raise _unsupported(image_field)
        _note_shape(value, exchange)
        _check_counts(value, limits.max_inputs)
        return value
    raise timeout


async def _parsed(body: bytes) -> object:
    def parse() -> object:
        return from_json(body.removeprefix(b"\xef\xbb\xbf"), cache_strings="keys")

    try:
        return parse() if len(body) < _THREAD_BYTES else await anyio.to_thread.run_sync(parse)
    except ValueError as exc:
        raise Problem(400, f"the body is not JSON: {exc}", code="invalid_json") from exc


async def form_fields(request: Request, most: int) -> dict[str, object]:
    """Return the fields of a form: files as bytes, the rest as text, lists where several came.

    Args:
        request: Whose body has not been read.
        most: Files that are taken.

    Raises:
        Problem: It is not a form, or has too many parts.
    """
    await request.body()
    try:
        async with request.form(
            max_files=most + 1, max_fields=2 * most + 16, max_part_size=16 << 20
        ) as form:
            fields: dict[str, list[object]] = {}
            for name, value in form.multi_items():
                content = await value.read() if isinstance(value, UploadFile) else value
                fields.setdefault(name.removesuffix("[]"), []).append(content)
    except (MultiPartException, HTTPException) as exc:
        said = getattr(exc, "message", None) or getattr(exc, "detail", "")
        if str(said).startswith("Too many files"):
            raise too_many_inputs(most + 1, most, param="input") from exc
        raise Problem(400, f"a malformed form: {said}", code="invalid_form") from exc
    if not fields:
        raise Problem(400, "a malformed form: it has no fields", code="invalid_form")
    return {
        name: values if name in _LISTS or len(values) > 1 else values[0]
        for name, values in fields.items()
    }


def _unsupported(image_field: str | None) -> Problem:
    kinds = ["application/json", "multipart/form-data"]
    if image_field is not None:
        kinds.append("image/*")
    return Problem(
        415,
        f"send {', '.join(kinds[:-1])} or {kinds[-1]}",
        code="unsupported_content_type",
        headers={"Accept-Post": ", ".join(kinds)},
    )


def _note_shape(value: object, exchange: Exchange) -> None:
    """Jina's clients send objects as inputs, and read errors in their own form."""
    given = value.get("input") if isinstance(value, dict) else None
    if isinstance(given, list) and any(isinstance(one, dict) for one in given[:_LOOKED_AT]):
        exchange.shape = "jina"


def _check_counts(value: object, most: int) -> None:
    """Count lists before a schema looks at each of their values, on the event loop."""
    if not isinstance(value, dict):
        return
    for name, given in value.items():
        bound = most if name in _LISTS else max(most, _MOST_VALUES)
        if not isinstance(given, list) or len(given) <= bound:
            continue
        if isinstance(given[0], int):
            continue  # token ids, of which the schema looks at the first
        raise too_many_inputs(len(given), bound, param=name[:64])


async def _while_connected(
    request: Request, work: Callable[[], Awaitable[_R]], *, timeout: float
) -> _R:
    """Do a request's work, and cancel it when the client goes away or it takes too long.

    Args:
        request: Its body has been read.
        work: What is to be done.
        timeout: Seconds that it may take.

    Raises:
        ClientDisconnect: The client went away.
        Problem: It took longer.
        Exception: As the work.
    """
    results: list[_R] = []
    errors: list[Exception] = []
    gone = False
    watching = anyio.CancelScope()

    async def watch() -> None:
        nonlocal gone
        with watching:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.cancel_scope.deadline = anyio.current_time() + timeout
        group.start_soon(watch)
        try:
            results.append(await work())
        except Exception as exc:  # noqa: BLE001  # raised again outside of the group
            errors.append(exc)
        # A task that ends by its group's cancellation is a cycle that holds the request's body.
        watching.cancel()
    if results:
        return results[0]
    if errors:
        raise errors.pop()  # its traceback refers to this frame, which must not refer to it
    if gone:
        raise ClientDisconnect
    raise Problem(
        504,
        f"the request took longer than {timeout:g} s: send fewer inputs",
        code="forward_timeout",
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
