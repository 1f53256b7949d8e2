"""What requests and responses look like: OpenAI's forms, and this server's own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from aioembed.models import Modality
from aioembed.state import Status

__all__ = [
    "ClassifyRequest",
    "ClassifyResponse",
    "Embedding",
    "EmbeddingsRequest",
    "EmbeddingsResponse",
    "EncodingFormat",
    "ErrorBody",
    "ErrorDetail",
    "Health",
    "ImageField",
    "ItemError",
    "LabelScore",
    "ModelCard",
    "ModelList",
    "ModelSnapshot",
    "SimilarityRequest",
    "SimilarityResponse",
    "StateError",
    "States",
    "Usage",
]

EncodingFormat = Literal["float", "base64"]

ImageField = Annotated[
    str | bytes,
    WithJsonSchema(
        {"type": "string", "description": "An https:, http: or data: URI, or an image in base64."}
    ),
]
"""An image as JSON has it, or the bytes of an uploaded file."""

_MODEL = Field(default=None, max_length=512, description="A name from /v1/models.")


class _Request(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True
    )


class _Response(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)


class EmbeddingsRequest(_Request):
    """OpenAI's request for embeddings, with `modality` beside it.

    Attributes:
        input: One text or image, or a list of them.
        model: A name from `/v1/models`; by default the first that embeds the modality.
        modality: What the inputs are; by default what the model embeds.
        encoding_format: Vectors as lists of numbers, or as little-endian float32 in base64.
        dimensions: Must be the model's own number of values.
        user: Accepted, as OpenAI does, and not used.
    """

    input: ImageField | Annotated[list[ImageField], Field(min_length=1)]
    model: str | None = _MODEL
    modality: Modality | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class Embedding(_Response):
    """One vector, of length 1, at the place of its input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(_Response):
    """What a request cost, in tokens of text; an image has none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(_Response):
    """OpenAI's list of embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(_Response):
    """One model by its name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["aioembed"] = "aioembed"
    modalities: list[Modality]
    embedding_dim: int | None = Field(description="Known once the model is loaded.")


class ModelList(_Response):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class SimilarityRequest(_Request):
    """Images or texts among each other, or images with texts.

    Attributes:
        images: Rows; columns too where there are no texts.
        texts: Columns; rows too where there are no images.
        model: Of the images.
        text_model: Of the texts.
    """

    images: list[ImageField] = []
    texts: list[str] = []
    model: str | None = _MODEL
    text_model: str | None = _MODEL


class SimilarityResponse(_Response):
    """Cosines, -1 to 1: a row for each image (or text), a column for each text (or image)."""

    object: Literal["similarity"] = "similarity"
    model: str
    text_model: str | None
    similarities: list[list[float]]


class ClassifyRequest(_Request):
    """Which of some labels fits an image.

    Attributes:
        image: What is classified.
        labels: At least one, none twice.
        prompts: Sentences with `{}` at the label's place; `a photo of a {}.` by default.
        model: Of the image.
        text_model: Of the labels.
    """

    image: ImageField
    labels: list[str] = Field(min_length=1)
    prompts: list[str] | None = Field(default=None, min_length=1)
    model: str | None = _MODEL
    text_model: str | None = _MODEL


class LabelScore(_Response):
    """How well one label fits."""

    label: str
    probability: float
    similarity: float


class ClassifyResponse(_Response):
    """How well each label fits, the best first; of a softmax model the probabilities sum to 1."""

    object: Literal["classification"] = "classification"
    model: str
    text_model: str
    scores: list[LabelScore]


class StateError(_Response):
    """Why a model's load failed."""

    code: str
    message: str


class ModelSnapshot(_Response):
    """What one model is doing; the fields of `aioembed.ModelState`."""

    name: str
    modality: Modality
    status: Status
    is_ready: bool
    is_generating: bool
    download_progress: float
    downloaded_bytes: int
    total_bytes: int | None
    download_rate: float
    download_eta: float | None
    is_paused: bool
    queue_depth: int
    error: StateError | None


class States(_Response):
    """What every model is doing."""

    is_ready: bool
    is_stopping: bool
    models: list[ModelSnapshot]


class Health(_Response):
    """The server answers."""

    status: Literal["alive"] = "alive"


class ItemError(_Response):
    """What is wrong with one input."""

    index: int
    code: str
    message: str


class ErrorDetail(_Response):
    """OpenAI's description of an error, with the inputs at fault beside it.

    Attributes:
        message: What was wrong and what to do.
        type: The family of the error.
        param: The field at fault, such as `input[3]`.
        code: The error's name.
        items: Every input at fault.
    """

    message: str
    type: str
    param: str | None = None
    code: str
    items: tuple[ItemError, ...] | None = None


class ErrorBody(_Response):
    """The body of every answer that is an error."""

    error: ErrorDetail
