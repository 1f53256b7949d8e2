"""Image inputs: sources under a policy, decoding within limits, preprocessing for a program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .decode import decode
from .policy import IMAGE_FORMATS, ImageFormat, SourcePolicy
from .preprocess import preprocess
from .resample import RgbImage
from .sources import (
    ChannelOrder,
    ImageFetcher,
    ImageInput,
    in_rgb,
    load_image,
    prepare,
    read_encoded,
    read_file,
)

if TYPE_CHECKING:
    from .fetching import PolicyTransport, Resolver, fetch
    from .guard import is_public

__all__ = [
    "IMAGE_FORMATS",
    "ChannelOrder",
    "ImageFetcher",
    "ImageFormat",
    "ImageInput",
    "PolicyTransport",
    "Resolver",
    "RgbImage",
    "SourcePolicy",
    "decode",
    "fetch",
    "in_rgb",
    "is_public",
    "load_image",
    "prepare",
    "preprocess",
    "read_encoded",
    "read_file",
]

_NEED_HTTPX = {
    "PolicyTransport": ".fetching",
    "Resolver": ".fetching",
    "fetch": ".fetching",
    "is_public": ".guard",
}


def __getattr__(name: str) -> object:
    # httpx costs 16 MB and a third of the import time; most programs fetch no image.
    if name not in _NEED_HTTPX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_HTTPX[name], __name__), name)
