"""Embeddings in Ray Data: an actor for `map_batches`, one model in each."""

try:
    import pyarrow as _pyarrow  # noqa: F401, ICN001
    import ray as _ray  # noqa: F401
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "ray", "ray") from _exc

from .actor import ImageEmbedder as ImageEmbedder
from .dataset import embed_images as embed_images
