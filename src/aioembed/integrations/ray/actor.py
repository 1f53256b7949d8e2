"""The actor: one loaded model, on as many threads as the actor has CPUs."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import ray
from anyio.from_thread import start_blocking_portal

from aioembed import GIST_512, ImageEmbeddings, ModelSource, Ok
from aioembed.errors import InvalidUserInput

from .columns import Columns, Outcome

__all__ = ["ImageEmbedder"]


class ImageEmbedder:
    """Embeds batches of images: a class for Ray Data's `map_batches`, or to be called itself.

    The model is loaded when it is made, in an event loop of its own in another thread, and
    computes on as many threads as the actor was given CPUs. A row that cannot be embedded gets
    its error in a column and costs the others nothing; a model that cannot be loaded raises.

    Args:
        model_source: As for `ImageEmbeddings`.
        image_column: Paths, URIs, bytes of image files, or arrays, each as `forward` takes it.
        embedding_column: Gets the vectors: a list of `embedding_dim` float32, null in rows that
            failed.
        error_column: Gets the errors of rows that failed, null in the others.
        keep_images: Whether the column of images stays in the batch.
        concurrency: Most rows between input and output, as for `embed_stream`.
        **options: Further ones of `ImageEmbeddings`.

    Raises:
        InvalidConfig: An option that cannot work.
        AioembedError: The model cannot be loaded.
    """

    def __init__(
        self,
        model_source: ModelSource = GIST_512,
        *,
        image_column: str = "image",
        embedding_column: str = "embedding",
        error_column: str = "error",
        keep_images: bool = True,
        concurrency: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._columns = Columns(image_column, embedding_column, error_column)
        self._keep_images = keep_images
        self._concurrency = concurrency
        cpus = _actor_cpus()
        if cpus is not None:
            pool = {} if "replicas" in options else {"threads": cpus}
            options = pool | {"decode_threads": cpus} | options
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            self._model = ImageEmbeddings(model_source, **options)
            stack.enter_context(self._portal.wrap_async_context_manager(self._model))
            self._portal.call(self._model.load)
            self._close = weakref.finalize(self, stack.pop_all().close)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed the rows of a batch.

        Args:
            batch: An Arrow table, as `map_batches(..., batch_format="pyarrow")` gives it.

        Returns:
            The table with the columns of embeddings and errors added or replaced.

        Raises:
            InvalidConfig: It has no column of the images' name.
        """
        items = self._columns.items(batch)
        outcomes = self._portal.call(self._embed, items)
        dim = self._model.embedding_dim
        return self._columns.extended(batch, outcomes, dim, keep=self._keep_images)

    def close(self) -> None:
        """Free the model; idempotent. Done at the latest when the process ends."""
        self._close()

    async def _embed(self, items: list[Any]) -> list[Outcome]:
        outcomes: list[Outcome] = [""] * len(items)
        async with self._model.embed_stream(
            items, ordered=False, concurrency=self._concurrency
        ) as results:
            async for result in results:
                if isinstance(result, Ok):
                    outcomes[result.key] = result.embedding
                elif isinstance(result.error, InvalidUserInput):
                    outcomes[result.key] = f"{type(result.error).__name__}: {result.error}"
                else:
                    raise result.error
        return outcomes


def _actor_cpus() -> int | None:
    """Whole CPUs that Ray gave to this actor, at least 1; None where this is no actor."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
