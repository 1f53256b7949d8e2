"""Embedding a Ray dataset in one call."""

from __future__ import annotations

from typing import Any

import ray.data

from aioembed import GIST_512, ModelSource
from aioembed.errors import InvalidConfig

from .actor import ImageEmbedder

__all__ = ["embed_images"]


def embed_images(
    dataset: ray.data.Dataset,
    model_source: ModelSource = GIST_512,
    *,
    actors: int | tuple[int, int] = 1,
    cpus_per_actor: int = 1,
    batch_size: int = 64,
    **options: Any,  # noqa: ANN401
) -> ray.data.Dataset:
    """Embed a dataset's images; like all of Ray Data, when it is read.

    It is `map_batches` with an `ImageEmbedder`, which may be called directly for whatever this
    does not offer.

    Args:
        dataset: Has a column of paths, URIs, bytes or arrays.
        model_source: As for `ImageEmbeddings`.
        actors: How many, or the least and the most. Each has a model of its own.
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
