"""For tests of programs that use aioembed: handles without a model, a stand-in for the hub."""

from .hub import HubServer
from .stand_in import ImageEmbeddingsStandIn, TextEmbeddingsStandIn

__all__ = ["HubServer", "ImageEmbeddingsStandIn", "TextEmbeddingsStandIn"]
