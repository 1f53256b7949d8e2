"""Embeddings in Ray Data: an actor class for `map_batches`, one model in each actor.

Needs the extra `ray`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal
from numpy.typing import NDArray

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings, ModelSource, Ok, Threads
from aioembed.errors import InvalidConfig, InvalidUserInput, MissingExtra

try:
    import pyarrow as pa
    import ray
    import ray.data
except ModuleNotFoundError as _exc:
    raise MissingExtra(_exc.name or "ray", "ray") from _exc

__all__ = ["ImageEmbedder", "embed_images"]

Batch = Any  # a pyarrow.Table, a pandas.DataFrame, or a dict of NumPy arrays


class ImageEmbedder:
    """Embeds batches of images: a class for Ray Data's `map_batches`, or to be called directly.

    The model is loaded by the constructor, in an event loop in its own thread, and computes
    on as many threads as the actor was given CPUs. A row that cannot be embedded gets its error
    in a column and does not affect the other rows; a model that cannot be loaded raises.

    The column of images may hold whatever `forward` takes (paths, URIs, bytes of image files,
    uint8 arrays), Hugging Face's `{"bytes": ..., "path": ...}`, and Arrow's or Ray's tensors.

    Args:
        model_source: As for `ImageEmbeddings`.
        image_column: The column of images.
        embedding_column: Gets the vectors: `embedding_dim` float32 in each row.
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
        model_source: ModelSource = EFFICIENTNET_LITE0,
        *,
        image_column: str = "image",
        embedding_column: str = "embedding",
        error_column: str = "error",
        keep_images: bool = True,
        concurrency: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._image = image_column
        self._embedding = embedding_column
        self._error = error_column
        self._keep_images = keep_images
        self._concurrency = concurrency
        cpus = _actor_cpus()
        if cpus is not None:
            options = {"threads": Threads(inference=cpus, preprocess=cpus)} | options
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            self._model = ImageEmbeddings(model_source, **options)
            stack.enter_context(self._portal.wrap_async_context_manager(self._model))
            self._portal.call(self._model.load)
            self._close = weakref.finalize(self, stack.pop_all().close)

    def __call__(self, batch: Batch) -> Batch:
        """Embed the rows of a batch.

        Args:
            batch: An Arrow table, a pandas data frame or a dict of NumPy arrays: any of the
                batch formats of `map_batches`.

        Returns:
            A batch of the same kind, with the columns of embeddings and errors added or
            replaced. A row that failed has a null embedding; in a dict of arrays, NaN.

        Raises:
            InvalidConfig: There is no column of the images' name.
        """
        names = list(batch.column_names if isinstance(batch, pa.Table) else batch)
        if self._image not in names:
            raise InvalidConfig(
                f"there is no column {self._image!r}, only {', '.join(names)}: name the column "
                "of images with image_column="
            )
        items = [_image(value) for value in _rows(batch[self._image])]
        vectors, errors = self._portal.call(self._embed, items)
        replaced = {self._embedding, self._error} | (set() if self._keep_images else {self._image})
        kept = [name for name in names if name not in replaced]
        if isinstance(batch, pa.Table):
            failed = pa.array([error is not None for error in errors], pa.bool_())
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), vectors.shape[1], mask=failed
            )
            done = batch.select(kept).append_column(self._embedding, column)
            return done.append_column(self._error, pa.array(errors, pa.string()))
        if isinstance(batch, dict):
            vectors[[error is not None for error in errors]] = np.nan
            new = {self._embedding: vectors, self._error: np.array(errors, object)}
            return {name: batch[name] for name in kept} | new
        embeddings = [
            vector if error is None else None for vector, error in zip(vectors, errors, strict=True)
        ]
        new = {self._embedding: embeddings, self._error: np.array(errors, object)}
        return batch[kept].assign(**new)

    def close(self) -> None:
        """Free the model; idempotent. Done at the latest when the process ends."""
        self._close()

    async def _embed(self, items: list[Any]) -> tuple[NDArray[np.float32], list[str | None]]:
        vectors = np.zeros((len(items), self._model.embedding_dim), np.float32)
        errors: list[str | None] = [None] * len(items)
        async with self._model.embed_stream(
            items, ordered=False, concurrency=self._concurrency
        ) as results:
            async for result in results:
                if isinstance(result, Ok):
                    vectors[result.key] = result.embedding
                elif isinstance(result.error, InvalidUserInput):
                    errors[result.key] = f"{type(result.error).__name__}: {result.error}"
                else:
                    raise result.error
        return vectors, errors


def embed_images(
    dataset: ray.data.Dataset,
    model_source: ModelSource = EFFICIENTNET_LITE0,
    *,
    actors: int | tuple[int, int] = 1,
    cpus_per_actor: int = 1,
    batch_size: int = 64,
    **options: Any,  # noqa: ANN401
) -> ray.data.Dataset:
    """Embed a dataset's images; like all of Ray Data, when it is read.

    It is `map_batches` with an `ImageEmbedder`, which may be used directly for what this does
    not offer.

    Args:
        dataset: Has a column of images, in any form that `ImageEmbedder` takes.
        model_source: As for `ImageEmbeddings`.
        actors: How many, or the least and the most. Each has a model.
        cpus_per_actor: CPUs that Ray reserves for each, and threads that it computes on.
        batch_size: Most rows of a batch; it is what is done again when an actor dies.
        **options: Those of `ImageEmbedder`.

    Raises:
        InvalidConfig: A number that cannot work.
    """
    least, most = (actors, actors) if isinstance(actors, int) else actors
    if not 1 <= least <= most or cpus_per_actor < 1 or batch_size < 1:
        raise InvalidConfig(
            f"there must be 1 actor, CPU and row at the least, not actors={actors}, "
            f"cpus_per_actor={cpus_per_actor}, batch_size={batch_size}"
        )
    return dataset.map_batches(
        ImageEmbedder,
        fn_constructor_args=(model_source,),
        fn_constructor_kwargs=options,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=cpus_per_actor,
    )


def _rows(column: Any) -> Sequence[Any]:  # noqa: ANN401  # a column of any batch format
    """Return the values of a column; those of tensor columns as arrays."""
    if not isinstance(column, pa.ChunkedArray):
        return list(column)
    rows: list[Any] = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.FixedShapeTensorArray):
            rows += list(chunk.to_numpy_ndarray())
        elif isinstance(chunk, pa.ExtensionArray):  # Ray's own tensors
            rows += list(chunk.to_numpy(zero_copy_only=False))
        else:
            rows += chunk.to_pylist()
    return rows


def _image(value: Any) -> Any:  # noqa: ANN401
    """Return what `forward` takes for a row; the bytes of Hugging Face's images, or their path."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        content = value.get("bytes")
        return value.get("path") if content is None else content
    return value


def _actor_cpus() -> int | None:
    """Whole CPUs that Ray gave to this actor, at least 1; None where this is not an actor."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
