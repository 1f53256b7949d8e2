"""Every error the library raises, in one tree.

```
AioembedError
├── InvalidConfig                 an option has a value that cannot work
├── MissingExtra                  an optional dependency is not installed
├── BrokenInstallation            the native module cannot be loaded
├── ModelNotLoaded                forward() before anything was loaded
│   └── ModelClosed               the handle was closed
├── WrongEventLoop                the handle is open on another event loop
├── ModelBusy                     as many calls wait or run as may
├── ForwardTimeout                no embedding within the caller's timeout
├── BatchItemFailed               one item of forward_batch() failed; `index` says which
├── InternalError                 an unexpected error; its cause says what happened
├── IllegalStateMove              the lifecycle refused a move (a bug in this library)
├── InvalidModelSource            the model source cannot be loaded
│   └── UnknownModel              no model of that name
├── ModelError                    the model's file or program is invalid
│   ├── ModelFileUnreadable       the file cannot be opened
│   ├── InvalidProgram            the file is not an ExecuTorch program, or a damaged one
│   ├── IntegrityError            the bytes are not those that were published or recorded
│   ├── ModelTooLarge             the model takes more memory than its pool may
│   ├── ProbeFailed               a program of unknown origin crashed in its trial run
│   │   └── ProbeIncomplete       a trial run took too long, lacked memory or could not start
│   ├── UnknownPreprocessing      the preprocessing of an image program is not known
│   ├── ExecutorchError           the runtime reported an error; `code` is ExecuTorch's (1 to 50)
│   │   └── ProgramLost           the runtime dropped a loaded program; it must be loaded again
│   ├── WrongDimensions           a tensor's shape or dtype does not match the program's
│   ├── UnexpectedNumInputs       the number of inputs does not match the program's
│   └── InvalidModelOutput        the program returned something that is not an embedding
├── InvalidUserInput              the item to be embedded is invalid
│   ├── FileReadFailed            a file cannot be read
│   ├── ImageDecodeError          the bytes are not an image, or a damaged one
│   ├── UnsupportedImageFormat    an image of a format that is not allowed
│   ├── ImageTooLarge             more pixels or bytes than the policy allows
│   ├── TextTooLong               more tokens than the model takes, or too many characters
│   ├── SourceRefused             the source policy refuses this URI
│   └── ImageFetchFailed          an image's URL could not be fetched
├── TokenizerError                the tokenizer cannot be loaded or does not fit the model
├── IncompatibleSpaces            two models have different spaces, so vectors cannot be compared
├── IndexFileError                an index file cannot be opened, read or written
│   ├── IndexLocked               another process holds its lock for too long
│   └── IndexDamaged              it is damaged, or belongs to another program
├── ResourceError                 a model file could not be downloaded or cached
│   ├── DownloadFailed            the server refused or the transfer could not be completed
│   │   ├── ResourceNotFound      404 or 410
│   │   ├── Unauthorized          401 or 403
│   │   └── DownloadInterrupted   the connection broke or stalled; what arrived is kept
│   ├── DownloadCancelled         cancel() ended it
│   ├── OfflineError              not cached, and offline
│   ├── CacheUnwritable           the cache folder cannot be written
│   └── DiskFull                  no space for the file
├── ExportError                   a program could not be exported
│   └── CheckpointError           the checkpoint is not of the kind that can be exported, or damaged
└── DownloadControlError          pause(), resume() or cancel() at the wrong moment
    ├── DownloadInProgress        a download of this file is already running
    ├── AlreadyPaused             paused already
    ├── AlreadyOngoing            not paused
    └── NotActive                 no download is running
```

Codes are those of the React Native ExecuTorch hook where it has one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

__all__ = [
    "AioembedError",
    "AlreadyOngoing",
    "AlreadyPaused",
    "BatchItemFailed",
    "BrokenInstallation",
    "CacheUnwritable",
    "CheckpointError",
    "DiskFull",
    "DownloadCancelled",
    "DownloadControlError",
    "DownloadFailed",
    "DownloadInProgress",
    "DownloadInterrupted",
    "ExecutorchError",
    "ExportError",
    "FileReadFailed",
    "ForwardTimeout",
    "IllegalStateMove",
    "ImageDecodeError",
    "ImageFetchFailed",
    "ImageTooLarge",
    "IncompatibleSpaces",
    "IndexDamaged",
    "IndexFileError",
    "IndexLocked",
    "IntegrityError",
    "InternalError",
    "InvalidConfig",
    "InvalidModelOutput",
    "InvalidModelSource",
    "InvalidProgram",
    "InvalidUserInput",
    "MissingExtra",
    "ModelBusy",
    "ModelClosed",
    "ModelError",
    "ModelFileUnreadable",
    "ModelNotLoaded",
    "ModelTooLarge",
    "NotActive",
    "OfflineError",
    "ProbeFailed",
    "ProbeIncomplete",
    "ProgramLost",
    "ResourceError",
    "ResourceNotFound",
    "SourceRefused",
    "TextTooLong",
    "TokenizerError",
    "Unauthorized",
    "UnexpectedNumInputs",
    "UnknownModel",
    "UnknownPreprocessing",
    "UnsupportedImageFormat",
    "WrongDimensions",
    "WrongEventLoop",
    "shorten",
]

_SHOWN_CHARACTERS = 80


def shorten(value: object) -> str:
    """Return `value` quoted for a message, its middle left out beyond 80 characters."""
    text = str(value)
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]}…{text[-half:]}"
    return repr(text)


class AioembedError(Exception):
    """Base of every error of this library.

    Attributes:
        code: The numeric code of the React Native ExecuTorch hook, 101 (unknown) where the hook
            has none; ExecuTorch's own number on `ExecutorchError`.
        reason: The code that the hook has from 0.10 on, such as `LOAD_FAILED`; `UNKNOWN` where
            none fits.
    """

    code: int = 101
    reason: str = "UNKNOWN"

    def __reduce__(self) -> tuple[Callable[..., AioembedError], tuple[Any, ...]]:
        """Pickle the arguments, the attributes and the causes.

        `BaseException` calls the class with `args`, which do not fit every constructor, and leaves
        out the causes.
        """
        cause = self.__cause__ or (None if self.__suppress_context__ else self.__context__)
        cause = cause if cause is None else _picklable(cause)
        return _unpickled, (type(self), self.args, self.__dict__, cause)


def _unpickled(
    kind: type[AioembedError],
    args: tuple[Any, ...],
    attributes: dict[str, Any],
    cause: BaseException | None,
) -> AioembedError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    error.__cause__ = cause
    return error


class _ForeignCause(Exception):
    """Stands in a pickled error for a cause that is not of this library: its type and text."""


def _picklable(error: BaseException) -> BaseException:
    """Return the error itself, or its text: foreign errors may hold sockets, locks and frames."""
    if isinstance(error, AioembedError):
        return error
    return _ForeignCause("".join(traceback.format_exception(error, limit=0)).strip())


class InvalidConfig(AioembedError):
    """An option has a value that cannot work."""

    code = 112
    reason = "INVALID_ARGUMENT"


class MissingExtra(AioembedError):
    """An optional dependency is not installed; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed: pip install "aioembed[{extra}]"')
        self.package = package
        self.extra = extra


class BrokenInstallation(AioembedError):
    """The native module cannot be loaded; `aioembed doctor` reports details.

    Attributes:
        found: What is wrong.
        advice: What to do about it.
    """

    reason = "LOAD_FAILED"

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(f"{message}; {advice}")
        self.found = message
        self.advice = advice


class ModelNotLoaded(AioembedError):
    """`forward` was called before anything was loaded."""

    code = 102
    reason = "INVALID_STATE"


class ModelClosed(ModelNotLoaded):
    """The handle was closed; `load()` or `async with` opens it again."""

    reason = "RESOURCE_DISPOSED"


class WrongEventLoop(AioembedError):
    """The handle is open on another event loop: call it there, or open a handle on this one."""

    code = 112
    reason = "INVALID_STATE"


class ModelBusy(AioembedError):
    """As many calls wait or run as `max_pending` allows.

    Attributes:
        pending: How many calls were waiting or running when this one was refused.
    """

    code = 104
    reason = "RESOURCE_BUSY"

    def __init__(self, message: str, *, pending: int) -> None:
        super().__init__(message)
        self.pending = pending


class ForwardTimeout(AioembedError, TimeoutError):
    """No embedding within the caller's timeout; the model stays ready."""


class BatchItemFailed(AioembedError):
    """One item of `forward_batch` failed; the cause is the item's error, whose code is taken.

    Attributes:
        index: The item's place in the batch, from 0.
        error: What is wrong with it.
    """

    def __init__(self, message: str, *, index: int, error: AioembedError) -> None:
        super().__init__(message)
        self.index = index
        self.error = error
        self.code: int = error.code
        self.reason: str = error.reason


class InternalError(AioembedError):
    """An unexpected error in one call; its cause says what happened."""

    @classmethod
    def of(cls, error: BaseException) -> InternalError:
        """Return an `InternalError` whose cause is `error`."""
        wrapped = cls(f"an unexpected {type(error).__name__}: {error}; please report it")
        wrapped.__cause__ = error
        return wrapped


class IllegalStateMove(AioembedError):
    """The lifecycle refused a move that its table does not have."""

    reason = "INVALID_STATE"


class InvalidModelSource(AioembedError):
    """The model source cannot be loaded."""

    code = 120
    reason = "INVALID_ARGUMENT"


class UnknownModel(InvalidModelSource):
    """No model has that name; the message suggests the nearest ones."""


class ModelError(AioembedError):
    """The model's file or program is invalid."""

    reason = "LOAD_FAILED"


class ModelFileUnreadable(ModelError):
    """The model's file is missing or cannot be opened."""

    code = 114


class InvalidProgram(ModelError):
    """The file is not an ExecuTorch program, or a damaged one."""

    code = 35


class IntegrityError(ModelError):
    """The bytes are not those that were published or recorded."""

    code = 180


class ModelTooLarge(ModelError):
    """The model takes more memory than all models of its `ModelPool` may."""


class ProbeFailed(ModelError):
    """A program of unknown origin crashed in its trial run in a child process."""


class ProbeIncomplete(ProbeFailed):
    """A trial run could not be finished, which says nothing about the program: its file is kept."""


class UnknownPreprocessing(ModelError):
    """The preprocessing of an image program is not known; guessing would give wrong vectors."""

    code = 112
    reason = "INVALID_ARGUMENT"


class ExecutorchError(ModelError):
    """The ExecuTorch runtime reported an error.

    Attributes:
        code: ExecuTorch's error number, 1 to 50.
        name: ExecuTorch's name for it, such as `OperatorMissing`.
        log: The last error lines of the runtime's log.
    """

    reason = "EXECUTION_FAILED"

    def __init__(self, message: str, *, code: int, name: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.log = log


class ProgramLost(ExecutorchError):
    """A check inside the runtime failed during a run: the program must be loaded again."""


class WrongDimensions(ModelError):
    """A tensor's shape or dtype does not match the program's."""

    code = 116
    reason = "SCHEMA_MISMATCH"


class UnexpectedNumInputs(ModelError):
    """The number of inputs does not match the program's."""

    code = 121
    reason = "SCHEMA_MISMATCH"


class InvalidModelOutput(ModelError):
    """The program's output is not an embedding."""

    code = 115
    reason = "SCHEMA_MISMATCH"


class InvalidUserInput(AioembedError):
    """The item to be embedded is invalid; the model stays ready.

    Args:
        problem: What is wrong.
        rule: The limit or rule that it violates, if any.
        remedy: What a caller of the library can do about it.

    Attributes:
        problem: What is wrong, without the remedy, for programs that word the remedy themselves.
        rule: The field of `SourcePolicy` that refuses it, `malformed` where none could allow it,
            and None where no policy is concerned.
    """

    code = 117
    reason = "INVALID_ARGUMENT"

    def __init__(self, problem: str, *, rule: str | None = None, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.rule = rule


class FileReadFailed(InvalidUserInput):
    """A file cannot be read."""

    code = 114


class ImageDecodeError(InvalidUserInput):
    """The bytes are not an image, or a damaged one."""


class UnsupportedImageFormat(InvalidUserInput):
    """An image of a format that is not allowed."""


class ImageTooLarge(InvalidUserInput):
    """More pixels or bytes than the policy allows."""


class TextTooLong(InvalidUserInput):
    """More tokens than the model takes, with `truncate="error"`, or too many characters."""


class SourceRefused(InvalidUserInput):
    """The source policy refuses this source; `rule` says why."""


class ImageFetchFailed(InvalidUserInput):
    """An image's URL could not be fetched."""


class TokenizerError(AioembedError):
    """The tokenizer cannot be loaded or does not fit the model."""

    code = 122
    reason = "LOAD_FAILED"


class IncompatibleSpaces(AioembedError):
    """Two models have different spaces, so their vectors cannot be compared."""

    code = 112
    reason = "SCHEMA_MISMATCH"


class IndexFileError(AioembedError):
    """An index file cannot be opened, read or written."""


class IndexLocked(IndexFileError):
    """Another process holds the index file's lock for too long; try again."""


class IndexDamaged(IndexFileError):
    """The file is damaged, or belongs to another program; index the pictures again."""


class ResourceError(AioembedError):
    """A model file could not be downloaded or cached."""

    code = 180
    reason = "DOWNLOAD_FAILED"


class DownloadFailed(ResourceError):
    """The server refused, or the transfer could not be completed."""


class ResourceNotFound(DownloadFailed):
    """The server has no such file (404 or 410)."""


class Unauthorized(DownloadFailed):
    """The server requires a token, or the token has no access (401 or 403)."""


class DownloadInterrupted(DownloadFailed):
    """The connection broke or stalled; the partial file is kept for resuming."""

    code = 118


class DownloadCancelled(ResourceError):
    """`cancel()` ended the download; the partial file is kept for resuming."""

    code = 118
    reason = "DOWNLOAD_ABORTED"


class OfflineError(ResourceError):
    """The file is not cached, and offline mode forbids a download."""


class CacheUnwritable(ResourceError):
    """The cache folder cannot be written."""


class DiskFull(ResourceError):
    """There is no space for the file."""


class ExportError(AioembedError):
    """A program could not be exported."""


class CheckpointError(ExportError):
    """The checkpoint is not of the kind that can be exported, or it is damaged."""


class DownloadControlError(AioembedError):
    """`pause()`, `resume()` or `cancel()` came at the wrong moment."""

    reason = "INVALID_STATE"


class DownloadInProgress(DownloadControlError):
    """A download of this file is already running."""

    code = 181
    reason = "RESOURCE_BUSY"


class AlreadyPaused(DownloadControlError):
    """The download is already paused."""

    code = 182


class AlreadyOngoing(DownloadControlError):
    """The download is not paused."""

    code = 183


class NotActive(DownloadControlError):
    """No download is running."""

    code = 184
