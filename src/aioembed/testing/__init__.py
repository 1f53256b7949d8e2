"""For tests of programs that use aioembed: handles without a model, servers on loopback."""

from .hub import HubServer
from .loopback import LoopbackServer, Reply, Request, file_reply
from .stand_in import ImageEmbeddingsStandIn, TextEmbeddingsStandIn

__all__ = [
    "HubServer",
    "ImageEmbeddingsStandIn",
    "LoopbackServer",
    "Reply",
    "Request",
    "TextEmbeddingsStandIn",
    "file_reply",
]
