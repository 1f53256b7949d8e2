"""Text embeddings: the image handle's sibling, whose vectors share the images' space."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ._tasks import BlockingCall
from .errors import InvalidConfig
from .handle import (
    DEFAULT_NICENESS,
    EmbeddingHandle,
    Inputs,
    LoadedModel,
    LoadOptions,
    OnBusy,
    OnCall,
)
from .models import (
    Modality,
    ModelSource,
    ModelSpec,
    Preprocessing,
    local_file,
    local_path,
    resolve_model,
)
from .statistics import Stopwatch
from .tokenize import Tokens, Truncate, report_truncation

if TYPE_CHECKING:
    import httpx

__all__ = ["TextEmbeddings", "use_text_embeddings"]

_FRAMES_TO_CALLER = 6


class TextEmbeddings(EmbeddingHandle[str]):
    """A text encoder whose life anyone can observe. Making one does no I/O.

    Used with `async with`, it loads in the background as soon as it is entered and is closed at
    the end; without, call `load` and `aclose` yourself. It belongs to one event loop.

    Args:
        model_source: A `ModelSpec` constant such as `CLIP_VIT_BASE_PATCH32_TEXT`, its name, a
            URL, or the path of a `.pte` file.
        tokenizer: Path of the model's `tokenizer.json`, where the model source names none and
            none lies beside the `.pte` file. For a model that is fetched it may be a URL.
        truncate: What becomes of a text of more tokens than the model reads, 77 for CLIP: `warn`
            cuts its end off and issues a `TruncationWarning`, `error` raises `TextTooLong`,
            `silent` cuts.
        prevent_load: Do not load when entered; `load` does it later.
        threads: 1 computes in one thread alone. Another number sets the size of the process's
            XNNPACK pool, which can change only before the first model is loaded. None leaves the
            pool at the number of CPUs this process may use.
        replicas: Copies of the program that run beside each other, each in one thread alone, in
            place of one on the whole pool. Each costs the memory of its weights again.
        niceness: By how much the priority of inference is below that of the event loop's thread, on
            Linux, so that the loop is not kept waiting for a CPU; 0 leaves it alone. The threads
            of the pool keep what the first model on it asked for.
        max_wait: Seconds that a call may wait for others to fill its batch, where the program
            takes several items at once. At 0 a batch is what waits already.
        max_pending: Most calls that may wait or run at the same time.
        on_busy: `wait` queues calls up to `max_pending`; `raise` refuses a call while another is
            under way, as the hook does.
        cache_dir: Folder of downloaded models, in place of the platform's.
        offline: Never use the network for models; None reads `HF_HUB_OFFLINE`.
        http_client: Fetches the model, in place of a client of its own. It is not closed.
        preprocessing: Of the images whose vectors these are compared with, where that image
            handle was given one of its own. It changes the space's name, not the vectors.
        on_call: Called on the event loop's thread with the `CallTiming` of every call that has
            ended; must not block. If it raises, that is logged and disturbs nobody.

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
        threads: int | None = None,
        replicas: int = 1,
        niceness: int = DEFAULT_NICENESS,
        max_wait: float = 0.0,
        max_pending: int = 1024,
        on_busy: OnBusy = "wait",
        cache_dir: str | os.PathLike[str] | None = None,
        offline: bool | None = None,
        http_client: httpx.AsyncClient | None = None,
        preprocessing: Preprocessing | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        if truncate not in {"warn", "error", "silent"}:
            raise InvalidConfig(f"truncate is 'warn', 'error' or 'silent', not {truncate!r}")
        super().__init__(
            _with_tokenizer(resolve_model(model_source, modality="text"), tokenizer),
            options=LoadOptions(
                threads=threads,
                replicas=replicas,
                niceness=niceness,
                max_wait=max_wait,
                cache_dir=cache_dir,
                offline=offline,
                http_client=http_client,
                preprocessing=preprocessing,
            ),
            prevent_load=prevent_load,
            max_pending=max_pending,
            on_busy=on_busy,
            on_call=on_call,
        )
        self._truncate = truncate

    async def forward(self, text: str, *, timeout: float | None = None) -> NDArray[np.float32]:
        """Embed one text.

        Args:
            text: Of at most 100,000 characters; may be empty. What lies beyond the model's
                context length does not count in the vector; see `truncate`.
            timeout: Seconds that it may take. What still waits then is never tokenised; an
                inference of its own that has begun is let finish.

        Returns:
            float32 `(embedding_dim,)`, of length 1.

        Raises:
            InvalidUserInput: No `str`, or one with lone surrogates; the model stays ready.
            TextTooLong: Longer than 100,000 characters, or than the context with
                `truncate="error"`; the model stays ready.
            ModelNotLoaded: No load was started.
            ModelBusy: Too many calls wait already.
            ForwardTimeout: It took longer than `timeout`.
            InvalidConfig: `timeout` is no positive number.
            ModelClosed: The handle was closed.
            AioembedError: The load that this call waited for failed.
        """
        return await super().forward(text, timeout=timeout)

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
            AioembedError: The load that this call waited for failed.
        """
        encoder = (await self._session()).model.text
        if encoder is None:
            raise InvalidConfig(f"{self.spec.name} embeds no text")
        tokens = await BlockingCall(lambda: encoder.encode(text)).run(self._decoders)
        return min(tokens.count, encoder.limit)

    async def _prepare(self, item: str, model: LoadedModel, stopwatch: Stopwatch) -> Inputs:
        encoder = model.text
        if encoder is None:
            raise InvalidConfig(f"{self.spec.name} embeds no text")

        def encode() -> Tokens:
            with stopwatch.measure("preprocess"):
                return encoder.encode(item)

        tokens = await BlockingCall(encode).run(self._decoders)
        if tokens.count > encoder.limit:
            report_truncation(
                item,
                count=tokens.count,
                limit=encoder.limit,
                truncate=self._truncate,
                stacklevel=_FRAMES_TO_CALLER,
            )
        return encoder.tensors(tokens.ids)


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
