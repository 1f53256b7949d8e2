"""Asyncio-native image and text embeddings on ExecuTorch and XNNPACK."""

from . import errors as errors
from .errors import AioembedError as AioembedError
from .image import ImageEmbeddings as ImageEmbeddings
from .image import use_image_embeddings as use_image_embeddings
from .images import ImageInput as ImageInput
from .images import SourcePolicy as SourcePolicy
from .images import load_image as load_image
from .models import CLIP_PREPROCESSING as CLIP_PREPROCESSING
from .models import CLIP_VIT_BASE_PATCH32_IMAGE as CLIP_VIT_BASE_PATCH32_IMAGE
from .models import CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED as CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED
from .models import CLIP_VIT_BASE_PATCH32_TEXT as CLIP_VIT_BASE_PATCH32_TEXT
from .models import EFFICIENTNET_LITE0 as EFFICIENTNET_LITE0
from .models import IMAGENET_PREPROCESSING as IMAGENET_PREPROCESSING
from .models import MODELS as MODELS
from .models import RNE_PREPROCESSING as RNE_PREPROCESSING
from .models import RNE_PREPROCESSING_0_10_6 as RNE_PREPROCESSING_0_10_6
from .models import EmbeddingSpace as EmbeddingSpace
from .models import ModelSource as ModelSource
from .models import ModelSpec as ModelSpec
from .models import Preprocessing as Preprocessing
from .models import ProgramMetadata as ProgramMetadata
from .similarity import VectorType as VectorType
from .similarity import cosine_similarity as cosine_similarity
from .similarity import dot_product as dot_product
from .similarity import quantize as quantize
from .state import LEGAL_MOVES as LEGAL_MOVES
from .state import ModelState as ModelState
from .state import Status as Status
from .statistics import CallTiming as CallTiming
from .statistics import StageStatistics as StageStatistics
from .statistics import Statistics as Statistics
from .stream import EmbeddingStream as EmbeddingStream
from .stream import Err as Err
from .stream import Ok as Ok
from .text import TextEmbeddings as TextEmbeddings
from .text import use_text_embeddings as use_text_embeddings
from .tokenize import TruncationWarning as TruncationWarning
from .zero_shot import Classification as Classification
from .zero_shot import LabelScore as LabelScore
from .zero_shot import ZeroShotClassifier as ZeroShotClassifier
from .zero_shot import classify as classify

__version__ = "0.1.0"
