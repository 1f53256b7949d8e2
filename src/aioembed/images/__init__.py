"""Image inputs: sources under a policy, decoding within limits, preprocessing for a program."""

from .addresses import is_public
from .decode import decode
from .fetch import fetch
from .policy import IMAGE_FORMATS, ImageFormat, SourcePolicy
from .preprocess import preprocess
from .resample import RgbImage
from .sources import ImageInput, load_image, obtain, prepare, read_encoded
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
