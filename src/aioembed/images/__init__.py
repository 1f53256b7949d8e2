"""Image inputs: sources under a policy, decoding within limits, preprocessing for a program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .addresses import is_public
from .decode import decode
from .policy import IMAGE_FORMATS, ImageFormat, SourcePolicy
from .preprocess import preprocess
from .resample import RgbImage
from .sources import ImageInput, load_image, obtain, prepare, read_encoded

if TYPE_CHECKING:
    from .fetching import fetch
    from .transport import PolicyTransport, Resolver, resolve

__all__ = [
    "IMAGE_FORMATS",
    "ImageFormat",
    "ImageInput",
    "PolicyTransport",
    "Resolver",
    "RgbImage",
    "SourcePolicy",
    "decode",
    "fetch",
    "is_public",
    "load_image",
    "obtain",
    "prepare",
    "preprocess",
    "read_encoded",
    "resolve",
]

_NEED_HTTPX = {
    "fetch": ".fetching",
    "PolicyTransport": ".transport",
    "Resolver": ".transport",
    "resolve": ".transport",
}


def __getattr__(name: str) -> object:
    # httpx costs 16 MB and a third of the import time; most programs fetch no image.
    if name not in _NEED_HTTPX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_HTTPX[name], __name__), name)
