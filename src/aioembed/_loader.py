"""Brings a model from its source to a loaded program: locate, verify, try in a child, load."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from numpy.typing import NDArray

from ._local_file import LocalFile
from ._packed import PackedFile, PackedFolder, is_small
from ._probe import probe, probe_once
from ._signature import ModelContract, read_contract
from ._tasks import BlockingCall, to_end
from ._text_inputs import TextInputs
from .errors import (
    IntegrityError,
    InvalidProgram,
    ModelError,
    NotActive,
    ProbeFailed,
    ProbeIncomplete,
    shorten,
)
from .folders import cache_folder
from .models import ModelSpec, local_file, local_path
from .options import LoadOptions
from .runtime import Program, check_program_file, set_thread_count
from .state import Lifecycle, Status

if TYPE_CHECKING:
    from .download import (
        Cache,
        CachedFile,
        DownloadControl,
        Fetcher,
        Progress,
        Resource,
    )

__all__ = ["Admission", "Admit", "Inputs", "LoadedModel", "Loader", "model_resources"]

Inputs = tuple[NDArray[Any], ...]
"""The tensors of one item, each with a first axis of 1."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Memory that a model may take.

    Attributes:
        release: Called when it has been freed.
        measured: Called with the bytes that the process grew by when the model was loaded and run;
            None where that is known already.
    """

    release: Callable[[], object]
    measured: Callable[[int], object] | None = None


Admit = Callable[[int], Awaitable[Admission]]
"""Waits until a model may be loaded whose program and copies have so many bytes."""

_TOKENIZER = "tokenizer.json"
_LARGE = 1 << 20
"""Bytes that take longer to copy than to hand to a worker thread."""


# --- the loaded model


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A program and its contract.

    Attributes:
        programs: Copies of the program: as many batches at the same time as there are.
        contract: Its inputs and outputs.
        text: Makes the inputs of a text program; None for images.
        packed: The files of packed weights that the copies map, if any.
        wakes_quickly: Whether loading it again takes milliseconds.
        memory: Bytes that the process grew by, if that was measured; otherwise 0.
    """

    programs: Sequence[Program]
    contract: ModelContract
    text: TextInputs | None = None
    packed: Sequence[PackedFile] = ()
    wakes_quickly: bool = False
    memory: int = 0

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        spec: ModelSpec,
        options: LoadOptions,
        packed: Sequence[PackedFile] = (),
        *,
        measures: bool = False,
    ) -> LoadedModel:
        """Load a program and read its contract. Blocks.

        Args:
            files: Where it lies.
            spec: What is known of it from outside.
            options: How to load it.
            packed: The packed weights of the copies; those that have none pack into memory.
            measures: Whether to run each copy once, on the largest input, to see what memory it
                takes.

        Raises:
            ModelError: The file, the program or its contract is at fault.
            TokenizerError: A text program's tokenizer is missing or does not belong to it.
            MissingExtra: A text program, and `tokenizers` is not installed.
            InvalidConfig: The pool's size can no longer change.
        """
        threads = options.threads
        before = _resident_bytes() if measures else 0
        with ExitStack() as undo:
            if threads.inference is not None and threads.inference > 1:
                set_thread_count(threads.inference)
            alone = 1 if threads.compute_alone else None
            paths = [undo.enter_context(file).path for file in packed]
            programs: list[Program] = []
            for _, path in zip_longest(range(threads.replicas), paths):
                programs.append(Program.load(files.model, threads=alone, packed_weights=path))
                undo.callback(programs[-1].close)
            contract = read_contract(
                programs[0],
                spec,
                preprocessing=options.preprocessing,
                file_sha256=files.sha256,
            )
            text = None
            if contract.modality == "text":
                text = TextInputs.load(programs[0], contract, spec, files.tokenizer)
            if measures:
                _run_largest(programs, contract)
            memory = _resident_bytes() - before if measures else 0
            wakes_quickly = len(packed) == len(programs) or is_small(files.model)
            undo.pop_all()
        return cls(tuple(programs), contract, text, tuple(packed), wakes_quickly, memory)

    async def run(self, program: Program, batch: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        """Embed the items of a batch on one of the copies; once begun, to its end.

        Returns:
            A float32 vector `(embedding_dim,)` of length 1 for each item.

        Raises:
            ModelError: The program refused the input or returned no embedding.
        """
        if len(batch) > 1 and self.contract.max_batch > 1 and _is_stackable(batch):
            stacked = await _stacked(batch)
            output = await self._compute(program, stacked, self.contract.batch_method)
            return list(self.contract.embeddings(output, len(batch)))
        return [await self._run_one(program, inputs) for inputs in batch]

    async def _run_one(self, program: Program, inputs: Inputs) -> NDArray[np.float32]:
        shapes = [info.shape for info in self.contract.forward.inputs]
        fitted = [
            tensor[0] if tensor.ndim == len(shape) + 1 else tensor
            for tensor, shape in zip(inputs, shapes, strict=True)
        ]
        output = await self._compute(program, fitted, self.contract.forward.name)
        return self.contract.embeddings(output, 1).reshape(-1)

    async def _compute(
        self, program: Program, inputs: Sequence[NDArray[Any]], method: str
    ) -> NDArray[Any]:
        """Run a program on its own native thread; no Python thread waits for it."""
        program.start(*inputs, method=method)
        await to_end(lambda: anyio.wait_readable(program.completion_fd))
        return program.collect()[self.contract.output]

    def close(self) -> None:
        """Free the programs' memory, when the runs in flight have ended. Blocks."""
        for program in self.programs:
            program.close()
        for file in self.packed:
            file.close()


def _run_largest(programs: Sequence[Program], contract: ModelContract) -> None:
    """Let the programs take the memory that their largest input needs. Blocks."""
    for program in programs:
        infos = program.methods[contract.batch_method].inputs
        zeros = [np.zeros(info.shape, info.dtype) for info in infos]
        with suppress(ModelError):  # calls will report it
            program.run(*zeros, method=contract.batch_method)


def _resident_bytes() -> int:
    """Return this process's memory, 0 where the system does not say. Blocks."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _is_stackable(batch: Sequence[Inputs]) -> bool:
    """Whether all items have one shape; texts have not where their lengths differ."""
    return len({inputs[0].shape for inputs in batch}) == 1


async def _stacked(batch: Sequence[Inputs]) -> list[NDArray[Any]]:
    """Return the items' tensors as one each; large ones are copied in a worker thread."""

    def stack() -> list[NDArray[Any]]:
        return [np.concatenate(tensors) for tensors in zip(*batch, strict=True)]

    if len(batch) * sum(tensor.nbytes for tensor in batch[0]) < _LARGE:
        return stack()
    return await BlockingCall(stack).run()


# --- files


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model, on this machine.

    Attributes:
        model: The `.pte` file.
        sha256: Returns its hash; may have to read the file, so call it in a worker thread.
        tokenizer: The `tokenizer.json` of a text model, where one is known.
    """

    model: Path
    sha256: Callable[[], str]
    tokenizer: Path | None = None


def _local_files(spec: ModelSpec, file: LocalFile) -> ModelFiles:
    """Return the files of a model on this machine; blocks where its hash must be checked.

    Raises:
        ModelFileUnreadable: The file cannot be read.
        IntegrityError: Its hash is not the one the spec gives.
    """
    if spec.sha256 is not None and (found := file.sha256()) != spec.sha256:
        raise IntegrityError(
            f"{shorten(file.path)} has sha256 {found[:12]}…, but {spec.name} is "
            f"{spec.sha256[:12]}…: the file is damaged or another one; fetch or install it again"
        )
    tokenizer = file.path.with_name(_TOKENIZER)
    if spec.tokenizer_source is not None:
        return ModelFiles(file.path, file.sha256, local_file(spec.tokenizer_source))
    is_known = spec.modality == "text" and tokenizer.is_file()
    return ModelFiles(file.path, file.sha256, tokenizer if is_known else None)


def _cached_files(spec: ModelSpec, files: Sequence[CachedFile]) -> ModelFiles:
    """Return the files of a model that was fetched; its program is the first."""
    program, *others = files
    tokenizer = others[0].path if others else None
    if tokenizer is None and spec.tokenizer_source is not None:
        tokenizer = local_file(spec.tokenizer_source)
    return ModelFiles(program.path, lambda: program.sha256, tokenizer)


def model_resources(spec: ModelSpec) -> list[Resource]:
    """Return what of a model must be fetched: its program and, for text, its tokenizer."""
    from .download import Resource  # noqa: PLC0415  # brings httpx

    wanted = []
    if local_file(spec.source) is None:
        # The hash decides; a published size alone may be that of another version.
        wanted.append(Resource(spec.source, sha256=spec.sha256, expected_size=spec.size_bytes))
    tokenizer = spec.tokenizer_source
    if tokenizer is not None and local_file(tokenizer) is None:
        wanted.append(Resource(tokenizer, sha256=spec.tokenizer_sha256))
    return wanted


# --- the load


class Loader:
    """Loads one model, again and again where it must.

    Args:
        spec: Of the model.
        options: How to fetch and load it.
        lifecycle: Moved to `downloading`, where a fetch is needed, and to `loading`.
    """

    def __init__(self, spec: ModelSpec, options: LoadOptions, lifecycle: Lifecycle) -> None:
        self._spec = spec
        self._options = options
        self._lifecycle = lifecycle
        self._control: DownloadControl | None = None

    async def load(self, admit: Callable[[int], Awaitable[bool]]) -> LoadedModel:
        """Return the loaded model.

        Args:
            admit: Awaited before the program is loaded, with the bytes of the program and its
                copies; returns whether to measure what memory they take.

        Raises:
            ResourceError: The files could not be fetched.
            ModelError: The file or the program in it is at fault.
            TokenizerError: A text model's tokenizer is missing or does not belong to it.
            MissingExtra: A text model, and `tokenizers` is not installed.
            InvalidConfig: The thread pool's size can no longer change.
        """
        path = local_path(self._spec)
        if path is None:
            files = await self._fetch()
        else:
            self._lifecycle.move(Status.LOADING, download_progress=1.0)
            local = LocalFile(path, cache_folder(self._options.cache_dir))
            files = await BlockingCall(partial(_local_files, self._spec, local)).run()
            if self._spec.sha256 is None:
                await probe_once(local)
        packed = await self._packed_weights(files)
        with ExitStack() as undo:
            for file in packed:
                undo.enter_context(file)
            copies = self._options.threads.replicas - max(0, len(packed) - 1)  # packed ones share
            measures = await admit(copies * (await anyio.Path(files.model).stat()).st_size)
            undo.pop_all()
        call = BlockingCall(
            partial(LoadedModel.load, files, self._spec, self._options, packed, measures=measures)
        )
        try:
            return await call.run()
        except BaseException:
            if call.result is not None:
                await to_end(BlockingCall(call.result.close).run)
            raise

    async def _packed_weights(self, files: ModelFiles) -> list[PackedFile]:
        """Return a file of packed weights for each copy, none where there can be none."""
        packed: list[PackedFile] = []
        if self._options.packed_weights:
            cache = cache_folder(self._options.cache_dir)
            folder = PackedFolder(cache, verify=self._options.verify)
            threads = self._options.threads
            for _ in range(threads.replicas):
                found = await folder.obtain(
                    files.model, files.sha256, single_thread=threads.compute_alone
                )
                if found is None:
                    break
                packed.append(found)
        return packed

    def pause(self) -> None:
        """Pause the download: the connection is closed, and what arrived is kept.

        Raises:
            NotActive: No download is under way.
            AlreadyPaused: It is paused.
        """
        self._active_download().pause()
        self._lifecycle.update(is_paused=True, download_rate=0.0, download_eta=None)

    def resume(self) -> None:
        """Go on with a paused download.

        Raises:
            NotActive: No download is under way.
            AlreadyOngoing: It is not paused.
        """
        self._active_download().resume()
        self._lifecycle.update(is_paused=False)

    def cancel(self) -> None:
        """End the download; the load fails with `DownloadCancelled`.

        Raises:
            NotActive: No download is under way.
        """
        self._active_download().cancel()

    def _active_download(self) -> DownloadControl:
        if self._control is None:
            raise NotActive("no download is under way")
        return self._control

    async def _fetch(self) -> ModelFiles:
        """Return the files, from the cache or from their servers."""
        lifecycle = self._lifecycle
        cache, fetcher, control = await BlockingCall(self._open_resources).run()
        wanted = model_resources(self._spec)
        files = await fetcher.find_cached(wanted)
        if files is None:
            lifecycle.move(Status.DOWNLOADING, download_progress=0.0)
            self._control = control
            try:
                files = await fetcher.fetch(wanted, on_progress=self._report, control=control)
            finally:
                self._control = None
        size = sum(file.size for file in files)
        lifecycle.move(
            Status.LOADING,
            download_progress=1.0,
            downloaded_bytes=size,
            total_bytes=size,
            download_rate=0.0,
            download_eta=None,
            is_paused=False,
        )
        program = files[0]
        if not program.trusted and not program.probed:
            try:  # once; one that fails is deleted, so that the next load fetches it again
                await BlockingCall(partial(check_program_file, program.path)).run()
                await probe(program.path)
            except ProbeIncomplete:
                raise
            except (InvalidProgram, ProbeFailed):
                await cache.delete(program)
                raise
            await cache.mark_probed(program)
        return _cached_files(self._spec, files)

    def _report(self, progress: Progress) -> None:
        if self._lifecycle.status is Status.DOWNLOADING:
            self._lifecycle.update(
                download_progress=progress.fraction,
                downloaded_bytes=progress.received,
                total_bytes=progress.total,
                download_rate=progress.rate,
                download_eta=progress.eta,
            )

    def _open_resources(self) -> tuple[Cache, Fetcher, DownloadControl]:
        # Imported here, since httpx costs 16 MB that models on this machine never need.
        from .download import Cache, DownloadControl, Fetcher  # noqa: PLC0415

        options = self._options
        cache = Cache(options.cache_dir)
        fetcher = Fetcher(
            cache,
            http_client=options.http_client,
            offline=options.offline,
            verify=options.verify,
        )
        return cache, fetcher, DownloadControl()
