"""The life of a model: its states, the one table of legal moves, and the snapshot users see."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from .errors import AioembedError, IllegalStateMove
from .observers import Observable

__all__ = ["LEGAL_MOVES", "Lifecycle", "ModelState", "Status"]


class Status(StrEnum):
    """Where a model is in its life."""

    IDLE = "idle"
    """Nothing has been started, or a load was cancelled."""
    DOWNLOADING = "downloading"
    """The model's files are being fetched, or a paused fetch waits to go on."""
    LOADING = "loading"
    """The files are there; the runtime prepares the program."""
    READY = "ready"
    """Loaded, and no inference is running."""
    GENERATING = "generating"
    """Loaded, and an inference is running."""
    FAILED = "failed"
    """The last load failed; `load()` tries again."""
    CLOSED = "closed"
    """Closed for good."""


_S = Status
LEGAL_MOVES = MappingProxyType(
    {
        _S.IDLE: frozenset({_S.DOWNLOADING, _S.LOADING, _S.FAILED, _S.CLOSED}),
        _S.DOWNLOADING: frozenset({_S.LOADING, _S.IDLE, _S.FAILED, _S.CLOSED}),
        _S.LOADING: frozenset({_S.READY, _S.IDLE, _S.FAILED, _S.CLOSED}),
        _S.READY: frozenset({_S.GENERATING, _S.CLOSED}),
        _S.GENERATING: frozenset({_S.READY, _S.CLOSED}),
        _S.FAILED: frozenset({_S.IDLE, _S.DOWNLOADING, _S.LOADING, _S.CLOSED}),
        _S.CLOSED: frozenset[Status](),
    }
)
"""Which states each state may move to; drawn in the documentation from this table."""


class ModelState(BaseModel):
    """What a model is doing, as one frozen value; equal states are the same object until a change.

    Attributes:
        status: Where the model is in its life.
        download_progress: 0 to 1; never goes back within a load; 1 once the files are there.
        downloaded_bytes: Bytes of the model's files that are on disk.
        total_bytes: Bytes in all, None where no server said.
        download_rate: Bytes per second over the last seconds.
        download_eta: Seconds until the download ends at that rate, None where unknown.
        is_paused: Whether the download is paused.
        queue_depth: Calls of `forward` that wait or run.
        error: Why the last load failed.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    status: Status = Status.IDLE
    download_progress: float = Field(default=0.0, ge=0.0, le=1.0)
    downloaded_bytes: int = 0
    total_bytes: int | None = None
    download_rate: float = 0.0
    download_eta: float | None = None
    is_paused: bool = False
    queue_depth: int = 0
    error: Annotated[AioembedError | None, SkipValidation] = None

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded: `ready` or `generating`."""
        return self.status in {Status.READY, Status.GENERATING}

    @property
    def is_generating(self) -> bool:
        """Whether an inference is running."""
        return self.status is Status.GENERATING


class Lifecycle(Observable[ModelState]):
    """The observable state of one model. `move` is the only thing that changes its status."""

    def __init__(self) -> None:
        super().__init__(ModelState())

    @property
    def status(self) -> Status:
        """The current status."""
        return self.value.status

    def move(self, status: Status, **changes: object) -> None:
        """Go to another status, together with other changes of the snapshot.

        Args:
            status: One that the table allows from here.
            **changes: Fields of `ModelState` that change in the same step.

        Raises:
            IllegalStateMove: The table does not have the move; nothing was changed.
        """
        if status not in LEGAL_MOVES[self.status]:
            raise IllegalStateMove(f"a model cannot go from {self.status} to {status}")
        self._publish(self.value.model_copy(update={"status": status, **changes}))

    def update(self, **changes: object) -> None:
        """Change fields other than the status; nothing is published where nothing differs."""
        current = self.value
        if any(getattr(current, name) != new for name, new in changes.items()):
            self._publish(current.model_copy(update=changes))
