"""The options of the handles. Those that belong together are one frozen value."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Literal, get_args

from .errors import InvalidConfig, shorten
from .models import Preprocessing

if TYPE_CHECKING:
    import httpx

__all__ = [
    "IdleTimeout",
    "LoadOptions",
    "Queueing",
    "Threads",
    "Verify",
    "check_count",
    "check_kind",
]

Verify = Literal["recorded", "always"]
IdleTimeout = float | Literal["auto"] | None

_AUTO_IDLE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """How many threads a model uses. `threads=2` on a handle is short for `Threads(inference=2)`.

    Attributes:
        inference: 1 computes in one thread alone. Another number sets the size of the process's
            XNNPACK pool, which can change only before the first model is loaded. None leaves the
            pool at the number of CPUs this process may use.
        preprocess: How many images are decoded and resized, or texts tokenised, at the same time,
            in worker threads; None is one per CPU this process may use.
        replicas: Copies of the program that run beside each other, each in one thread alone, in
            place of one on the whole pool.

    Raises:
        InvalidConfig: Not a number of at least 1, or several copies of several threads each.
    """

    inference: int | None = None
    preprocess: int | None = None
    replicas: int = 1

    def __post_init__(self) -> None:
        check_count("inference", self.inference, may_be_left_out=True)
        check_count("preprocess", self.preprocess, may_be_left_out=True)
        check_count("replicas", self.replicas)
        if self.replicas > 1 and self.inference not in {None, 1}:
            raise InvalidConfig(
                f"{self.replicas} replicas compute in one thread each: leave out the number of "
                f"threads ({self.inference}), or the replicas"
            )

    @classmethod
    def of(cls, threads: int | Threads | None) -> Threads:
        """Return what a handle's `threads` means.

        Raises:
            InvalidConfig: It is neither a number of at least 1, nor None, nor a `Threads`.
        """
        if isinstance(threads, Threads):
            return threads
        check_count("threads", threads, may_be_left_out=True)
        return cls(inference=threads)

    @property
    def compute_alone(self) -> bool:
        """Whether each copy of the program computes in its own thread alone."""
        return self.inference == 1 or self.replicas > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Queueing:
    """Which calls wait for a model, and for how long.

    Attributes:
        max_pending: Most calls that may wait or run at the same time; one more is refused with
            `ModelBusy`. With 1 none waits, as with the hook of React Native ExecuTorch.
        max_wait: Seconds that a call may wait for others to fill its batch, where the program
            takes several items at once. At 0 a batch is what waits already.

    Raises:
        InvalidConfig: A value of another type or out of its range.
    """

    max_pending: int = 1024
    max_wait: float = 0.0

    def __post_init__(self) -> None:
        check_count("max_pending", self.max_pending)
        if not _is_number(self.max_wait) or not 0 <= self.max_wait < math.inf:
            raise InvalidConfig(
                f"max_wait must be a number of seconds from 0 on, not {self.max_wait!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a handle's model is fetched, loaded and unloaded; the handles document each option.

    Raises:
        InvalidConfig: A value of another type or out of its range.
    """

    threads: Threads = field(default_factory=Threads)
    cache_dir: str | os.PathLike[str] | None = None
    offline: bool | None = None
    http_client: httpx.AsyncClient | None = None
    preprocessing: Preprocessing | str | None = None
    packed_weights: bool = True
    verify: Verify = "recorded"
    idle_timeout: IdleTimeout = None

    def __post_init__(self) -> None:
        check_kind("cache_dir", self.cache_dir, str | os.PathLike | None, "a path or None")
        check_kind("offline", self.offline, bool | None, "True, False or None")
        check_kind("packed_weights", self.packed_weights, bool, "True or False")
        wanted = "a Preprocessing, the name of a preset, the path of a JSON file, or None"
        check_kind("preprocessing", self.preprocessing, Preprocessing | str | None, wanted)
        imported = sys.modules.get("httpx")  # it costs 16 MB, and who has a client has imported it
        client = NoneType if imported is None else imported.AsyncClient | None
        check_kind("http_client", self.http_client, client, "an httpx.AsyncClient or None")
        if self.verify not in get_args(Verify):
            raise InvalidConfig(f"verify is 'recorded' or 'always', not {shorten(self.verify)}")
        idle = self.idle_timeout
        is_timeout = _is_number(idle) and 0 < idle < math.inf  # type: ignore[operator]
        if idle is not None and idle != "auto" and not is_timeout:
            raise InvalidConfig(
                f"idle_timeout must be a number of seconds above 0, 'auto' or None, not {idle!r}"
            )

    def idle_seconds(self, *, wakes_quickly: bool) -> float | None:
        """Return the seconds without a call after which a model is to sleep; None is never.

        Args:
            wakes_quickly: Whether loading it again takes milliseconds.
        """
        if self.idle_timeout == "auto":
            return _AUTO_IDLE_SECONDS if wakes_quickly else None
        return self.idle_timeout


def check_count(name: str, count: object, *, may_be_left_out: bool = False) -> None:
    """Refuse what is not a number of at least 1.

    Raises:
        InvalidConfig: It is not.
    """
    if count is None and may_be_left_out:
        return
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidConfig(f"{name} must be a number of at least 1, not {count!r}")


def check_kind(name: str, value: object, kind: type | UnionType, wanted: str) -> None:
    """Refuse a value of another type.

    Raises:
        InvalidConfig: It is not of that kind.
    """
    if not isinstance(value, kind):
        raise InvalidConfig(f"{name} must be {wanted}, not {shorten(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
