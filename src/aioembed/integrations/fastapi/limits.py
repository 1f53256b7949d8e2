"""The limits of one request, of one client and of all together, and what counts against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from .problems import Problem

__all__ = ["Load", "Reservation", "ServerLimits"]

_MEBI = 1024 * 1024
_SMALL_BODY = _MEBI
_SHARE_OF_LARGE_BODIES = 0.75


class ServerLimits(BaseModel):
    """How much requests may ask for; what is beyond is refused before any work is done.

    Attributes:
        max_body_bytes: Most bytes of a request's body, counted as they arrive.
        max_total_body_bytes: Most bytes of all bodies that are held at the same time. A quarter is
            kept for bodies of up to 1 MiB, so that large ones never shut small ones out.
        max_requests: Most requests with a body that are under way at the same time.
        max_inputs: Most images and texts in one request.
        inputs_at_once: How many inputs of one request are embedded at the same time, so that a
            long request leaves room for others.
        max_fetches: Most images that are fetched from their URLs at the same time.
        body_timeout: Seconds in which a body must have arrived.
        request_timeout: Seconds that a request may take once its body is there.
        max_streams: Most open streams of states.
        max_streams_per_client: Most of them for one client address.
        stream_seconds: Seconds after which a stream ends; browsers open another by themselves.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: PositiveInt = 16 * _MEBI
    max_total_body_bytes: PositiveInt = 256 * _MEBI
    max_requests: PositiveInt = 512
    max_inputs: PositiveInt = 256
    inputs_at_once: PositiveInt = 8
    max_fetches: PositiveInt = 64
    body_timeout: PositiveFloat = 30.0
    request_timeout: PositiveFloat = 120.0
    max_streams: PositiveInt = 64
    max_streams_per_client: PositiveInt = 16
    stream_seconds: PositiveFloat = 300.0


class Load:
    """What all requests hold together, counted against the limits."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._requests = 0
        self._bytes = 0
        self._fetches = 0
        self._streams: Counter[str] = Counter()

    @contextmanager
    def request(self, declared: int | None) -> Iterator[Reservation]:
        """Count a request with a body, and the bytes that it holds.

        Args:
            declared: The body's length, None where it is not known.

        Raises:
            Problem: The body is too large, or too much is under way.
        """
        if declared is not None and declared > self._limits.max_body_bytes:
            raise _body_too_large(self._limits.max_body_bytes)
        if self._requests >= self._limits.max_requests:
            raise Problem(
                429,
                f"{self._requests} requests are under way, which is the most: try again later",
                code="too_many_requests",
            )
        reservation = Reservation(self, self._limits)
        self._requests += 1
        try:
            reservation.grow(declared or 0)
            yield reservation
        finally:
            self._requests -= 1
            self._bytes -= reservation.bytes

    def check_stream(self, client: str) -> None:
        """Refuse a stream of states where too many are open.

        Args:
            client: Its address.

        Raises:
            Problem: Too many are open.
        """
        for count, most, whose in (
            (self._streams[client], self._limits.max_streams_per_client, "of this client "),
            (self._streams.total(), self._limits.max_streams, ""),
        ):
            if count >= most:
                message = f"{count} streams {whose}are open, which is the most: try again later"
                raise Problem(429, message, code="too_many_streams")

    @contextmanager
    def stream(self, client: str) -> Iterator[None]:
        """Count an open stream of states of a client's address."""
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            self._streams += Counter()  # forgets clients without streams

    @contextmanager
    def fetch(self) -> Iterator[None]:
        """Count an image that is fetched from its URL.

        Raises:
            Problem: Too many are being fetched.
        """
        if self._fetches >= self._limits.max_fetches:
            raise Problem(
                429,
                f"{self._fetches} images are being fetched, which is the most: try again later",
                code="too_many_fetches",
            )
        self._fetches += 1
        try:
            yield
        finally:
            self._fetches -= 1

    def reserve(self, count: int, *, total: int) -> None:
        """Count more bytes of a body that has `total` with them.

        Raises:
            Problem: All bodies together would be too large.
        """
        most = self._limits.max_total_body_bytes
        if total > _SMALL_BODY:
            most = int(most * _SHARE_OF_LARGE_BODIES)
        if self._bytes + count > most:
            raise Problem(
                429,
                "the bodies of other requests take all the room there is: try again later",
                code="too_many_bytes",
            )
        self._bytes += count


class Reservation:
    """The bytes of one body: as many as were declared, and those that arrived beyond them.

    Attributes:
        bytes: Counted so far.
    """

    def __init__(self, load: Load, limits: ServerLimits) -> None:
        self._load = load
        self._limits = limits
        self._arrived = 0
        self.bytes: int = 0

    def arrived(self, count: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Problem: The body is too large, or all of them together.
        """
        self._arrived += count
        if self._arrived > self._limits.max_body_bytes:
            raise _body_too_large(self._limits.max_body_bytes)
        self.grow(self._arrived - self.bytes)

    def grow(self, count: int) -> None:
        """Reserve more bytes; a count below 1 changes nothing."""
        if count > 0:
            self._load.reserve(count, total=self.bytes + count)
            self.bytes += count


def _body_too_large(most: int) -> Problem:
    return Problem(
        413,
        f"a body may have at most {most} bytes: send fewer or smaller images",
        code="body_too_large",
        headers={"Connection": "close"},
    )
