"""How long and how often the fetcher tries."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields

import anyio

from aioembed.errors import InvalidConfig

__all__ = ["FetchLimits", "Timing"]


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of a download.

    Attributes:
        connect: Seconds to reach the server.
        stall: Seconds in which `min_rate` must be kept up, otherwise the attempt is given up.
        total: Seconds for the whole of a fetch, pauses excluded; None for no bound.
        retries: Further attempts after one that failed. An attempt that brought at least 1 MiB
            of new bytes starts the count again.
        backoff: Seconds before the first retry; it doubles with each.
        max_backoff: Longest wait between attempts in seconds.
        max_retry_after: Longest wait that a server may ask for in seconds.
        min_rate: Bytes per second below which a transfer counts as stalled.
        redirects: Hops that are followed.

    Raises:
        InvalidConfig: A bound is negative, or a time that must pass is zero.
    """

    connect: float = 10.0
    stall: float = 30.0
    total: float | None = None
    retries: int = 5
    backoff: float = 0.5
    max_backoff: float = 30.0
    max_retry_after: float = 120.0
    min_rate: float = 1024.0
    redirects: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 0:
                raise InvalidConfig(f"{field.name} is {value}: give 0 or more")
        if not self.connect or not self.stall or self.total == 0:
            raise InvalidConfig("connect, stall and total must be longer than 0 seconds")

    @property
    def stall_bytes(self) -> int:
        """Bytes that must arrive within `stall` seconds."""
        return max(1, int(self.min_rate * self.stall))


@dataclass(frozen=True)
class Timing:
    """The clock and the waits of the fetcher, so that tests need not wait.

    Attributes:
        now: Monotonic seconds.
        sleep: Waits that many seconds.
        jitter: A number in 0..1 that spreads retries of many clients.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    jitter: Callable[[], float] = random.random

    def delay(self, limits: FetchLimits, failures: int) -> float:
        """Seconds to wait after so many failures in a row: doubling, half of it by chance."""
        longest = min(limits.max_backoff, limits.backoff * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * self.jitter())
