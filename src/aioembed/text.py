"""Text embeddings: the image handle's sibling, whose vectors share the images' space."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args

from ._tasks import run_in_thread
from ._text_inputs import TextInputs
from .errors import InvalidConfig, shorten
from .handle import EmbeddingHandle, Inputs, OnCall, Session
from .models import (
    Modality,
    ModelSource,
    ModelSpec,
    Preprocessing,
    local_file,
    local_path,
    resolve_model,
)
from .options import IdleTimeout, LoadOptions, Queueing, Threads, Verify
from .similarity import Embedding
from .statistics import Stopwatch
from .tokenize import Tokens, Truncate, report_truncation

if TYPE_CHECKING:
    import httpx

__all__ = ["TextEmbeddings", "use_text_embedder", "use_text_embeddings"]

_FRAMES_TO_CALLER = 5


class _Text(NamedTuple):
    """A text with the options of its call."""

    text: str
    truncate: Truncate
    on_tokens: Callable[[int], object] | None


class TextEmbeddings(EmbeddingHandle[str]):
    """A text encoder whose life anyone can observe. Making one does no I/O.

    Used with `async with`, it loads in the background as soon as it is entered and is closed at
    the end; without, call `load` and `aclose` yourself. Either opens a closed handle again. While
    open it belongs to one event loop.

    Args:
        model_source: A `ModelSpec` constant such as `CLIP_VIT_BASE_PATCH32_TEXT`, its name, a
            URL, or the path of a `.pte` file.
        tokenizer: Path of the model's `tokenizer.json`, where the model source names none and
            none lies beside the `.pte` file. For a model that is fetched it may be a URL.
        truncate: What becomes of a text of more tokens than the model reads, 77 for CLIP: `warn`
            cuts its end off and issues a `TruncationWarning`, `error` raises `TextTooLong`,
            `silent` cuts.
        prevent_load: Do not load when entered; `load` does it later.
        threads: 1 computes in one thread alone, another number sets the size of the process's
            XNNPACK pool; `Threads(...)` says more. None is one thread per CPU.
        queueing: Which calls wait, and for how long; by default up to 1024 calls.
        cache_dir: Folder of downloaded models, in place of the platform's.
        offline: Never use the network for models; None reads `HF_HUB_OFFLINE`.
        http_client: Fetches the model, in place of its own client. It is not closed.
        preprocessing: Of the images whose vectors these are compared with, where that image
            handle was given one. It changes the space's name, not the vectors.
        sha256: What the model's file must hash to, 64 hexadecimal digits: for a program whose
            files are pinned. None takes the published hash, or trusts the first download.
        packed_weights: Keep what the runtime computes from the weights in a file of the cache,
            which is made at the first load: later loads take milliseconds, and processes share
            its memory. False computes it at every load. Programs under 16 MB need none.
        verify: `recorded` hashes cached files (the model's and its packed weights) only if their
            size or time changed; `always` hashes them at every load and wake.
        idle_timeout: Seconds without a call after which the model is unloaded. Its status is
            `idle` then, `state.is_asleep` is true, and the next call wakes it. None is never;
            `auto` is 300 for a model that wakes in milliseconds, otherwise never.
        on_call: Called on the event loop's thread with the `CallTiming` of every call that has
            ended; must not block. If it raises, that is logged and the call is not affected.

    Raises:
        InvalidConfig: An option that cannot work, or a model to be fetched without a tokenizer.
        InvalidModelSource: The model source is nothing that can be loaded.
    """

    modality: ClassVar[Modality] = "text"

    def __init__(
        self,
        model_source: ModelSource,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        truncate: Truncate = "warn",
        prevent_load: bool = False,
        threads: int | Threads | None = None,
        queueing: Queueing | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        offline: bool | None = None,
        http_client: httpx.AsyncClient | None = None,
        preprocessing: Preprocessing | None = None,
        sha256: str | None = None,
        packed_weights: bool = True,
        verify: Verify = "recorded",
        idle_timeout: IdleTimeout = None,
        on_call: OnCall | None = None,
    ) -> None:
        _check_truncate(truncate)
        super().__init__(
            _with_tokenizer(resolve_model(model_source, modality="text", sha256=sha256), tokenizer),
            options=LoadOptions(
                threads=Threads.of(threads),
                cache_dir=cache_dir,
                offline=offline,
                http_client=http_client,
                preprocessing=preprocessing,
                packed_weights=packed_weights,
                verify=verify,
                idle_timeout=idle_timeout,
            ),
            queueing=queueing,
            prevent_load=prevent_load,
            on_call=on_call,
        )
        self._truncate = truncate

    async def forward(
        self,
        text: str,
        *,
        truncate: Truncate | None = None,
        timeout: float | None = None,
        on_tokens: Callable[[int], object] | None = None,
    ) -> Embedding:
        """Embed one text.

        Args:
            text: Of at most 100,000 characters; may be empty. What lies beyond the model's
                context length does not count in the vector; see `truncate`.
            truncate: For this call, in place of the handle's own.
            timeout: Seconds that it may take; the caller is released then, whatever the model
                does. What still waits is never tokenised.
            on_tokens: Called on the event loop's thread, once the text is tokenised, with the
                number that `count_tokens` returns. Tokenising happens once.

        Returns:
            float32 `(embedding_dim,)`, of length 1.

        Raises:
            InvalidUserInput: No `str`, or one with lone surrogates; the model stays ready.
            TextTooLong: Longer than 100,000 characters, or than the context with
                `truncate="error"`; the model stays ready.
            ModelNotLoaded: No load was started.
            ModelBusy: Too many calls wait already.
            ForwardTimeout: It took longer than `timeout`.
            InvalidConfig: `timeout` is not a positive number, or `truncate` something else.
            ModelClosed: The handle was closed.
            WrongEventLoop: The handle is open on another event loop.
            ProgramLost: The runtime gave the program up; `load` brings it back.
            InternalError: An unexpected error; its cause says which.
            AioembedError: The load that this call waited for failed.
        """
        if truncate is None and on_tokens is None:
            return await super().forward(text, timeout=timeout)
        truncate = self._truncate if truncate is None else truncate
        _check_truncate(truncate)
        item: Any = _Text(text, truncate, on_tokens)
        return await super().forward(item, timeout=timeout)

    embed = forward

    async def count_tokens(self, text: str) -> int:
        """Return how many tokens of a text the model reads: at most its context length.

        Args:
            text: As for `forward`; special tokens count.

        Raises:
            InvalidUserInput: No `str`, or one with lone surrogates.
            TextTooLong: Longer than 100,000 characters.
            ModelNotLoaded: No load was started.
            ModelClosed: The handle was closed.
            WrongEventLoop: The handle is open on another event loop.
            ProgramLost: The runtime gave the program up; `load` brings it back.
            InternalError: An unexpected error; its cause says which.
            AioembedError: The load that this call waited for failed.
        """
        self._check_loop()
        session = await self._ready_session()
        encoder = self._encoder(session)
        tokens = await run_in_thread(lambda: encoder.encode(text), limiter=session.decoders)
        return min(tokens.count, encoder.limit)

    async def _prepare(self, item: str | _Text, session: Session, stopwatch: Stopwatch) -> Inputs:
        encoder = self._encoder(session)
        call = item if isinstance(item, _Text) else _Text(item, self._truncate, None)

        def encode() -> Tokens:
            with stopwatch.measure("preprocess"):
                return encoder.encode(call.text)

        tokens = await run_in_thread(encode, limiter=session.decoders)
        if tokens.count > encoder.limit:
            report_truncation(
                call.text,
                count=tokens.count,
                limit=encoder.limit,
                truncate=call.truncate,
                stacklevel=_FRAMES_TO_CALLER,
            )
        if call.on_tokens is not None:
            call.on_tokens(min(tokens.count, encoder.limit))
        return encoder.tensors(tokens.ids)

    def _encoder(self, session: Session) -> TextInputs:
        if session.model.text is None:
            raise InvalidConfig(f"{self.spec.name} does not embed text")
        return session.model.text


def _check_truncate(truncate: object) -> None:
    if truncate not in get_args(Truncate):
        raise InvalidConfig(f"truncate is 'warn', 'error' or 'silent', not {shorten(truncate)}")


def use_text_embeddings(model_source: ModelSource, prevent_load: bool = False) -> TextEmbeddings:
    """Make a `TextEmbeddings` by the hook's name.

    Args:
        model_source: As for `TextEmbeddings`.
        prevent_load: Do not load when entered.
    """
    return TextEmbeddings(model_source, prevent_load=prevent_load)


def _with_tokenizer(spec: ModelSpec, tokenizer: str | os.PathLike[str] | None) -> ModelSpec:
    """Return the spec with the tokenizer that the caller names, if that can be brought."""
    if tokenizer is not None:
        named = {"tokenizer_source": os.fspath(tokenizer), "tokenizer_sha256": None}
        spec = spec.model_copy(update=named)
    if spec.modality != "text":
        return spec
    is_remote = local_path(spec) is None
    if spec.tokenizer_source is None and is_remote:
        raise InvalidConfig(
            f"{spec.name} is fetched from elsewhere, and its tokenizer must be named: pass the "
            "path or URL of its tokenizer.json as tokenizer="
        )
    if not is_remote and spec.tokenizer_source and local_file(spec.tokenizer_source) is None:
        raise InvalidConfig(
            f"{spec.name} lies on this machine, and only models that are fetched have their "
            "tokenizer fetched too: pass the path of its tokenizer.json as tokenizer="
        )
    return spec


use_text_embedder = use_text_embeddings
"""The hook's name for it from 0.10 on."""
