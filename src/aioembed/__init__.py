"""Asyncio-native image and text embeddings on ExecuTorch and XNNPACK."""

from . import errors
from .errors import AioembedError
from .image import ImageEmbeddings, use_image_embedder, use_image_embeddings
from .images import (
    ImageInput,
    SourcePolicy,
    load_image,
)
from .models import (
    CLIP_PREPROCESSING,
    CLIP_VIT_BASE_PATCH32_IMAGE,
    CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED,
    CLIP_VIT_BASE_PATCH32_TEXT,
    EFFICIENTNET_LITE0,
    IMAGENET_PREPROCESSING,
    MODELS,
    RNE_PREPROCESSING,
    RNE_PREPROCESSING_0_10_6,
    EmbeddingSpace,
    ModelSource,
    ModelSpec,
    Preprocessing,
    ProgramMetadata,
)
from .options import Queueing, Threads
from .pool import ModelPool
from .similarity import (
    VectorType,
    cosine_similarity,
    dot_product,
    quantize,
)
from .state import (
    LEGAL_MOVES,
    ModelState,
    Status,
)
from .statistics import (
    CallTiming,
    StageStatistics,
    Statistics,
)
from .stream import (
    EmbeddingStream,
    Err,
    Ok,
)
from .text import TextEmbeddings, use_text_embedder, use_text_embeddings
from .tokenize import TruncationWarning
from .zero_shot import (
    Classification,
    LabelScore,
    ZeroShotClassifier,
    classify,
)

__all__ = [
    "CLIP_PREPROCESSING",
    "CLIP_VIT_BASE_PATCH32_IMAGE",
    "CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED",
    "CLIP_VIT_BASE_PATCH32_TEXT",
    "EFFICIENTNET_LITE0",
    "IMAGENET_PREPROCESSING",
    "LEGAL_MOVES",
    "MODELS",
    "RNE_PREPROCESSING",
    "RNE_PREPROCESSING_0_10_6",
    "AioembedError",
    "CallTiming",
    "Classification",
    "EmbeddingSpace",
    "EmbeddingStream",
    "Err",
    "ImageEmbeddings",
    "ImageInput",
    "LabelScore",
    "ModelPool",
    "ModelSource",
    "ModelSpec",
    "ModelState",
    "Ok",
    "Preprocessing",
    "ProgramMetadata",
    "Queueing",
    "SourcePolicy",
    "StageStatistics",
    "Statistics",
    "Status",
    "TextEmbeddings",
    "Threads",
    "TruncationWarning",
    "VectorType",
    "ZeroShotClassifier",
    "classify",
    "cosine_similarity",
    "dot_product",
    "errors",
    "load_image",
    "quantize",
    "use_image_embedder",
    "use_image_embeddings",
    "use_text_embedder",
    "use_text_embeddings",
]

__version__ = "0.2.0"
