"""The database on a worker thread, one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from .._tasks import BlockingCall
from ..errors import InvalidConfig, shorten
from .database import Database

__all__ = ["Storage"]

R = TypeVar("R")


class Storage:
    """Runs functions of a database in worker threads, never two at the same time.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: Database | None = None
        self._one = anyio.CapacityLimiter(1)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._database is not None

    async def open(self) -> None:
        """Open the file.

        Raises:
            IndexFileError: It cannot be opened, is locked, damaged or no index.
        """
        opening = BlockingCall(partial(Database, self._path))
        try:
            self._database = await opening.run(self._one)
        except BaseException:
            if opening.result is not None:
                opening.result.close()
            raise

    async def run(self, function: Callable[[Database], R]) -> R:
        """Run a function of the database; once begun it is waited for.

        Raises:
            InvalidConfig: The index is not open.
            IndexFileError: The file is at fault.
        """
        if self._database is None:
            raise InvalidConfig(
                f"the index {shorten(self._path)} is not open: use it inside `async with`"
            )
        return await BlockingCall(partial(function, self._database)).run(self._one)

    async def aclose(self) -> None:
        """Close the file when no call runs any more. Idempotent."""
        database, self._database = self._database, None
        if database is not None:
            with anyio.CancelScope(shield=True):
                await BlockingCall(database.close).run(self._one)
