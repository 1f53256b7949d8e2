"""Models that must be fetched: brought into the cache and tried once."""

from __future__ import annotations

from functools import partial

from .._probe import probe
from .._tasks import BlockingCall
from ..download import Cache, CachedFile, DownloadControl, Fetcher, Progress, Resource
from ..errors import InvalidProgram, ProbeFailed
from ..models import ModelSpec, local_file
from ..runtime import check_program_file
from ..state import Lifecycle, Status
from .files import ModelFiles

__all__ = ["RemoteModel", "model_resources"]


class RemoteModel:
    """Fetches one model's files.

    Args:
        spec: Of the model.
        cache: Where its files go.
        fetcher: What fetches them into the cache.
        lifecycle: Moved to `downloading`, where a fetch is needed, and to `loading`.
    """

    def __init__(
        self, spec: ModelSpec, cache: Cache, fetcher: Fetcher, lifecycle: Lifecycle
    ) -> None:
        self._spec = spec
        self._cache = cache
        self._fetcher = fetcher
        self._lifecycle = lifecycle
        self.control: DownloadControl = DownloadControl()

    async def fetch(self) -> ModelFiles:
        """Return the files, from the cache or from their servers.

        Raises:
            ResourceError: They could not be fetched.
            IntegrityError: They are not what was published or recorded.
            InvalidProgram: The file is no program, and was deleted.
            ProbeFailed: The program failed its trial run, and was deleted.
        """
        wanted = model_resources(self._spec)
        files = await self._fetcher.find_cached(wanted)
        if files is None:
            self._lifecycle.move(Status.DOWNLOADING, download_progress=0.0)
            files = await self._fetcher.fetch(
                wanted, on_progress=self._report, control=self.control
            )
        size = sum(file.size for file in files)
        self._lifecycle.move(
            Status.LOADING,
            download_progress=1.0,
            downloaded_bytes=size,
            total_bytes=size,
            download_rate=0.0,
            download_eta=None,
            is_paused=False,
        )
        await self._try_once(files[0])
        return _model_files(self._spec, files)

    def pause(self) -> None:
        """Pause the fetch; the snapshot says so."""
        self.control.pause()
        self._lifecycle.update(is_paused=True, download_rate=0.0, download_eta=None)

    def resume(self) -> None:
        """Go on with a paused fetch."""
        self.control.resume()
        self._lifecycle.update(is_paused=False)

    def _report(self, progress: Progress) -> None:
        if self._lifecycle.status is Status.DOWNLOADING:
            self._lifecycle.update(
                download_progress=progress.fraction,
                downloaded_bytes=progress.received,
                total_bytes=progress.total,
                download_rate=progress.rate,
                download_eta=progress.eta,
            )

    async def _try_once(self, file: CachedFile) -> None:
        """Give a program whose hash nobody published its trial run, once.

        One that fails is deleted, so that the next load fetches it anew.
        """
        if file.trusted or file.probed:
            return
        try:
            await BlockingCall(partial(check_program_file, file.path)).run()
            await probe(file.path)
        except (InvalidProgram, ProbeFailed):
            await self._cache.delete(file)
            raise
        await self._cache.mark_probed(file)


def model_resources(spec: ModelSpec) -> list[Resource]:
    """Return what of a model must be fetched: its program and, for text, its tokenizer."""
    wanted = []
    if local_file(spec.source) is None:
        # The hash decides; a published size alone may be that of another version.
        wanted.append(Resource(spec.source, sha256=spec.sha256, expected_size=spec.size_bytes))
    tokenizer = spec.tokenizer_source
    if tokenizer is not None and local_file(tokenizer) is None:
        wanted.append(Resource(tokenizer, sha256=spec.tokenizer_sha256))
    return wanted


def _model_files(spec: ModelSpec, files: list[CachedFile]) -> ModelFiles:
    program, *others = files
    named = spec.tokenizer_source
    tokenizer = others[0].path if others else named and local_file(named)
    return ModelFiles(program.path, lambda: program.sha256, tokenizer or None)
