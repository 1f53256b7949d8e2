"""Image embeddings: the handle that mirrors the hook `useImageEmbeddings`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from .errors import InvalidConfig
from .handle import EmbeddingHandle, Inputs, OnCall, Session
from .images import ChannelOrder, ImageFetcher, ImageInput, SourcePolicy, in_rgb, prepare
from .models import EFFICIENTNET_LITE0, Modality, ModelSource, Preprocessing, resolve_model
from .options import IdleTimeout, LoadOptions, Queueing, Threads, Verify, check_kind
from .similarity import Embedding
from .statistics import Stopwatch

if TYPE_CHECKING:
    import httpx

__all__ = ["ImageEmbeddings", "use_image_embedder", "use_image_embeddings"]


class ImageEmbeddings(EmbeddingHandle[ImageInput]):
    """An image encoder whose life anyone can observe. Making one does no I/O.

    Used with `async with`, it loads in the background as soon as it is entered and is closed at
    the end; without, call `load` and `aclose` yourself. Either opens a closed handle again. While
    open it belongs to one event loop.

    Args:
        model_source: A `ModelSpec` constant, its name, a URL, or the path of a `.pte` file. By
            default the model that ships with the library.
        prevent_load: Do not load when entered; `load` does it later.
        source_policy: What images may be and where they may come from; the default,
            `SourcePolicy.trusted()`, is for the program's own calls. Give
            `SourcePolicy.untrusted()` where others choose the URIs.
        threads: 1 computes in one thread alone, another number sets the size of the process's
            XNNPACK pool; `Threads(...)` says more. None is one thread per CPU.
        queueing: Which calls wait, and for how long; by default up to 1024 calls.
        cache_dir: Folder of downloaded models, in place of the platform's.
        offline: Never use the network for models; None reads `HF_HUB_OFFLINE`.
        http_client: Fetches models, and images where the source policy allows private addresses
            (as `trusted` does), in place of its own clients; its headers are sent. Under
            `untrusted` it fetches models only, which is logged. It is not closed.
        preprocessing: In place of the one the model says: a `Preprocessing`, the name of a preset
            (`rne`, `rne-0.10.6`, `clip`, `imagenet`), or the path of a JSON file.
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
        InvalidConfig: An option that cannot work.
        InvalidModelSource: The model source is nothing that can be loaded.
    """

    modality: ClassVar[Modality] = "image"

    def __init__(
        self,
        model_source: ModelSource = EFFICIENTNET_LITE0,
        *,
        prevent_load: bool = False,
        source_policy: SourcePolicy | None = None,
        threads: int | Threads | None = None,
        queueing: Queueing | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        offline: bool | None = None,
        http_client: httpx.AsyncClient | None = None,
        preprocessing: Preprocessing | str | None = None,
        sha256: str | None = None,
        packed_weights: bool = True,
        verify: Verify = "recorded",
        idle_timeout: IdleTimeout = None,
        on_call: OnCall | None = None,
    ) -> None:
        super().__init__(
            resolve_model(model_source, sha256=sha256),
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
        check_kind("source_policy", source_policy, SourcePolicy | None, "a SourcePolicy or None")
        self._policy = source_policy or SourcePolicy.trusted()
        self._fetcher = ImageFetcher(self._policy, http_client=http_client)

    @property
    def source_policy(self) -> SourcePolicy:
        """What images may be and where they may come from."""
        return self._policy

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the loaded program's input.

        Raises:
            ModelNotLoaded: Nothing is loaded.
        """
        preprocessing = self._contract.preprocessing
        if preprocessing is None:
            raise InvalidConfig(f"{self.spec.name} embeds no images")
        return preprocessing

    async def forward(
        self,
        image: ImageInput,
        *,
        format: ChannelOrder = "RGB",  # noqa: A002
        timeout: float | None = None,
    ) -> Embedding:
        """Embed one image.

        Args:
            image: An `https:`, `http:`, `file:` or `data:` URI, a path, raw base64, the bytes of
                an image file, an open binary file, a `PIL.Image.Image`, or a uint8 array: grey
                `(height, width)`, or `(height, width, 3 or 4)`.
            format: The order of an array's channels; OpenCV's are `BGR`.
            timeout: Seconds that it may take; the caller is released then, whatever the model
                does. What still waits is never decoded.

        Returns:
            float32 `(embedding_dim,)`, of length 1.

        Raises:
            InvalidUserInput: The image is at fault; the model stays ready.
            ModelNotLoaded: No load was started.
            ModelBusy: Too many calls wait already.
            ForwardTimeout: It took longer than `timeout`.
            InvalidConfig: `timeout` is not a positive number, or `format` does not go with the
                image.
            ModelClosed: The handle was closed.
            WrongEventLoop: The handle is open on another event loop.
            ProgramLost: The runtime gave the program up; `load` brings it back.
            InternalError: An unexpected error; its cause says which.
            AioembedError: The load that this call waited for failed.
        """
        return await super().forward(in_rgb(image, format), timeout=timeout)

    embed = forward

    async def _release(self) -> None:
        await self._fetcher.aclose()

    async def _obtain(self, item: ImageInput, stopwatch: Stopwatch) -> ImageInput:
        if not isinstance(item, str):
            return item
        with stopwatch.measure("fetch"):
            return await self._fetcher.obtain(item)

    async def _prepare(self, item: ImageInput, session: Session, stopwatch: Stopwatch) -> Inputs:
        preprocessing = session.model.contract.preprocessing
        if preprocessing is None:
            raise InvalidConfig(f"{self.spec.name} embeds no images")
        pixels = await prepare(
            item,
            preprocessing,
            policy=self._policy,
            limiter=session.decoders,
            stopwatch=stopwatch,
        )
        return (pixels,)


def use_image_embeddings(model_source: ModelSource, prevent_load: bool = False) -> ImageEmbeddings:
    """Make an `ImageEmbeddings` by the hook's name.

    Args:
        model_source: As for `ImageEmbeddings`.
        prevent_load: Do not load when entered.
    """
    return ImageEmbeddings(model_source, prevent_load=prevent_load)


use_image_embedder = use_image_embeddings
"""The hook's name for it from 0.10 on."""
