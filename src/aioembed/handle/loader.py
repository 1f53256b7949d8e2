"""Brings a model from its source to a loaded program, telling the lifecycle each step."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from .._probe import probe_once
from .._tasks import BlockingCall
from ..errors import InvalidConfig, NotActive
from ..folders import cache_folder
from ..models import ModelSpec, Preprocessing, local_path
from ..state import Lifecycle, Status
from .files import ModelFiles, local_files
from .loaded import LoadedModel

if TYPE_CHECKING:
    import httpx

    from .remote import RemoteModel

__all__ = ["DEFAULT_NICENESS", "LoadOptions", "Loader"]

DEFAULT_NICENESS = 1
_MOST_NICENESS = 19


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a handle's model is fetched, loaded and run; the handles document each option.

    Raises:
        InvalidConfig: An option out of its range, or several copies of several threads each.
    """

    threads: int | None = None
    decode_threads: int | None = None
    replicas: int = 1
    niceness: int = DEFAULT_NICENESS
    max_wait: float = 0.0
    cache_dir: str | os.PathLike[str] | None = None
    offline: bool | None = None
    http_client: httpx.AsyncClient | None = None
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        self._check_counts()
        wait: object = self.max_wait
        if not isinstance(wait, int | float) or isinstance(wait, bool) or not 0 <= wait < math.inf:
            raise InvalidConfig(f"max_wait must be a number of seconds from 0 on, not {wait!r}")
        nice: object = self.niceness
        if not isinstance(nice, int) or isinstance(nice, bool) or not 0 <= nice <= _MOST_NICENESS:
            raise InvalidConfig(f"niceness must be from 0 to {_MOST_NICENESS}, not {nice!r}")

    def _check_counts(self) -> None:
        for name in ("threads", "decode_threads", "replicas"):
            count: object = getattr(self, name)
            is_left_out = count is None and name != "replicas"
            if not is_left_out and not (isinstance(count, int) and count >= 1):
                raise InvalidConfig(f"{name} must be a number of at least 1, not {count!r}")
        if self.replicas > 1 and self.threads not in {None, 1}:
            raise InvalidConfig(
                f"replicas={self.replicas} are copies of one thread each, which leaves nothing "
                f"for threads={self.threads} to mean: give one of both"
            )


class Loader:
    """Fetches and loads one model.

    Args:
        spec: Of the model.
        options: How to fetch and load it.
        lifecycle: Moved to `downloading`, where a fetch is needed, and to `loading`.
    """

    def __init__(self, spec: ModelSpec, options: LoadOptions, lifecycle: Lifecycle) -> None:
        self._spec = spec
        self._options = options
        self._lifecycle = lifecycle
        self._remote: RemoteModel | None = None

    async def load(self) -> LoadedModel:
        """Return the loaded model.

        Raises:
            ResourceError: The files could not be fetched.
            ModelError: The file or the program in it is at fault.
            InvalidConfig: The thread pool's size can no longer change.
        """
        files = await self._locate()
        call = BlockingCall(lambda: self._load_files(files))
        try:
            return await call.run()
        except BaseException:
            if call.result is not None:
                with anyio.CancelScope(shield=True):
                    await BlockingCall(call.result.close).run()
            raise

    def pause(self) -> None:
        """Pause the download.

        Raises:
            NotActive: No download is under way.
            AlreadyPaused: It is paused.
        """
        self._download().pause()

    def resume(self) -> None:
        """Go on with a paused download.

        Raises:
            NotActive: No download is under way.
            AlreadyOngoing: It is not paused.
        """
        self._download().resume()

    def cancel(self) -> None:
        """End the download; the load fails with `DownloadCancelled`.

        Raises:
            NotActive: No download is under way.
        """
        self._download().control.cancel()

    def _download(self) -> RemoteModel:
        if self._remote is None:
            raise NotActive("no download is under way")
        return self._remote

    async def _locate(self) -> ModelFiles:
        path = local_path(self._spec)
        if path is None:
            self._remote = self._remote or await BlockingCall(self._open_remote).run()
            return await self._remote.fetch()
        self._lifecycle.move(Status.LOADING, download_progress=1.0)
        files = await BlockingCall(lambda: local_files(self._spec, path)).run()
        if self._spec.sha256 is None:
            await probe_once(path, cache_folder(self._options.cache_dir))
        return files

    def _open_remote(self) -> RemoteModel:
        # Imported here, since httpx costs 16 MB that models on this machine never need.
        from ..download import Cache, Fetcher  # noqa: PLC0415
        from .remote import RemoteModel  # noqa: PLC0415

        options = self._options
        cache = Cache(options.cache_dir)
        fetcher = Fetcher(cache, http_client=options.http_client, offline=options.offline)
        return RemoteModel(self._spec, cache, fetcher, self._lifecycle)

    def _load_files(self, files: ModelFiles) -> LoadedModel:
        return LoadedModel.load(
            files,
            self._spec,
            threads=self._options.threads,
            replicas=self._options.replicas,
            niceness=self._options.niceness,
            preprocessing=self._options.preprocessing,
        )
