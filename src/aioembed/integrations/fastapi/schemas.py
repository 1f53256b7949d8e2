"""Requests and responses: in other servers' shapes, and in this server's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from aioembed.models import Modality
from aioembed.similarity import VectorType
from aioembed.state import Status
from aioembed.zero_shot import LabelScore

__all__ = [
    "ClassifyRequest",
    "ClassifyResponse",
    "CohereError",
    "CohereRequest",
    "CohereResponse",
    "EmbeddingsRequest",
    "EmbeddingsResponse",
    "ErrorBody",
    "Health",
    "Item",
    "ModelCard",
    "ModelList",
    "ModelSnapshot",
    "SimilarityRequest",
    "SimilarityResponse",
    "StateError",
    "States",
    "form_of",
]

OutputType = Literal["float", "base64"] | VectorType
Truncation = Literal["error", "end"]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be embedded.

    Attributes:
        value: A text, an image's URL, data URI or base64, or the bytes of an image.
        modality: None where a text may be either, as in OpenAI's shape.
        is_alone: Whether it was sent by itself, not in a list.
    """

    value: str | bytes
    modality: Modality | None = None
    is_alone: bool = False


def _items(given: object) -> list[Item]:
    """Read `input` in the shapes of OpenAI, infinity and Jina."""
    if given is None:
        raise ValueError("is null")
    if isinstance(given, str | bytes | dict):
        return [replace(_item(given), is_alone=True)]
    if not isinstance(given, list) or not given:
        raise ValueError(f"must be a text, an image or a list of them, not {_kind(given)}")
    if isinstance(given[0], int):
        raise ValueError(_TOKENS)  # noqa: TRY004  # which pydantic takes for an error of the field
    return [_item(one) for one in given]


_TOKENS = (
    "has token ids, which differ between models: send the text itself (with LangChain, pass "
    "check_embedding_ctx_length=False)"
)


def _item(one: object) -> Item:
    if isinstance(one, str):
        return Item(one)
    if isinstance(one, bytes):
        return Item(one, "image")
    if isinstance(one, list):
        are_tokens = bool(one) and isinstance(one[0], int)
        raise ValueError(_TOKENS if are_tokens else "has a list in its list")  # noqa: TRY004
    return _of_parts([one])


def _of_parts(parts: Sequence[object]) -> Item:
    """Read parts of content, which make one item together: one text or one image."""
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"has {len(parts)} parts in one item, and {_MOST_PARTS} is the most")
    found = [item for part in parts for item in _part(part)]
    if {one.modality for one in found} == {"text", "image"}:
        raise ValueError("mixes text and image in one item: embed them one by one")
    if not found:
        raise ValueError("has an item without 'text' or 'image'")
    if len(found) > 1:
        if found[0].modality == "image":
            raise ValueError("has several images in one item: embed them one by one")
        return Item("\n".join(str(one.value) for one in found), "text")
    return found[0]


_MOST_PARTS = 256
_PARTS: dict[str, Modality] = {"text": "text", "image": "image", "image_url": "image"}


def _part(part: object) -> Iterator[Item]:
    if isinstance(part, str):
        yield Item(part, "text")
        return
    if not isinstance(part, dict):
        raise ValueError(f"has {_kind(part)} where a text or an image belongs")  # noqa: TRY004
    for name, modality in _PARTS.items():
        value = part.get(name)
        if isinstance(value, dict):
            value = value.get("url")
        if value is None:
            continue
        if not isinstance(value, str | bytes):
            raise ValueError(f"has {_kind(value)} as {name!r}, which is a string")  # noqa: TRY004
        yield Item(value, modality)


def _messages(given: object) -> Item:
    """Read `messages` in the shape of vLLM and SGLang: one item in all."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"must be a list of messages, not {_kind(given)}")
    parts: list[object] = []
    for message in given:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts.extend(content)
        elif content is not None or not isinstance(message, dict):
            raise ValueError("has a message whose content is neither a text nor a list")
    # An instruction to the model beside an image is not part of what an encoder embeds.
    return _of_parts(parts)


def _cohere_inputs(given: object) -> list[Item] | None:
    if given is None:
        return None
    if not isinstance(given, list):
        raise ValueError(f"must be a list, not {_kind(given)}")  # noqa: TRY004
    contents = [one.get("content") if isinstance(one, dict) else one for one in given]
    return [_of_parts(one if isinstance(one, list) else [one]) for one in contents]


def _kind(given: object) -> str:
    names = {dict: "an object", list: "an empty list", type(None): "null", bool: "a boolean"}
    return names.get(type(given), "a number")


_IMAGE_TEXT = "An http(s) URL, a data URI, or an image in base64."
_ONE_INPUT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "description": f"A text, or an image: {_IMAGE_TEXT.lower()}"},
        {
            "type": "object",
            "description": "A text or an image, as Jina's clients send it.",
            "properties": {"text": {"type": "string"}, "image": {"type": "string"}},
            "additionalProperties": True,
        },
    ]
}

Inputs = Annotated[
    list[Item],
    BeforeValidator(_items),
    WithJsonSchema(
        {"anyOf": [*_ONE_INPUT["anyOf"], {"type": "array", "items": _ONE_INPUT, "minItems": 1}]}
    ),
]
Messages = Annotated[
    Item,
    BeforeValidator(_messages),
    WithJsonSchema({"type": "array", "items": {"type": "object"}, "minItems": 1}),
]
ImageField = Annotated[str | bytes, WithJsonSchema({"type": "string", "description": _IMAGE_TEXT})]
"""An image as JSON has it, or the bytes of an uploaded file."""


def _truncation(given: object) -> object:
    """Read other servers' values: TEI's and infinity's boolean, Cohere's NONE and END."""
    if isinstance(given, bool):
        return "end" if given else "error"
    if isinstance(given, str):
        return {"none": "error", "false": "error", "true": "end"}.get(given.lower(), given.lower())
    return given


_TRUNCATE = Annotated[
    Truncation | None,
    BeforeValidator(_truncation),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "boolean"}, {"type": "null"}]}),
]
_MODEL = Field(default=None, max_length=512, description="A name from /v1/models.")


class _Request(BaseModel):
    """Fields that are not known are kept apart: ignored, unless the server is strict."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="allow", hide_input_in_errors=True
    )


class _Response(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)


class EmbeddingsRequest(_Request):
    """A request for embeddings in the shape of OpenAI, infinity, Jina, vLLM or SGLang.

    Attributes:
        input: One text or image, or a list of them; Jina's clients send objects with `text` or
            `image`.
        messages: vLLM's and SGLang's chat form of one input, in place of `input`.
        model: A name from `/v1/models`; by default the first that embeds the inputs.
        modality: What strings in `input` are, where they could be either.
        encoding_format: How vectors are sent; `base64` is little-endian float32.
        dimensions: Must be the model's own number of values.
        truncate: `end` cuts texts that are too long, `error` refuses them.
        user: Accepted, as OpenAI does, and not used.
    """

    input: Inputs | None = None
    messages: Messages | None = None
    model: str | None = _MODEL
    modality: Modality | None = None
    encoding_format: Annotated[
        OutputType | None,
        Field(validation_alias=AliasChoices("encoding_format", "embedding_type", "output_dtype")),
    ] = None
    dimensions: int | None = Field(default=None, ge=1)
    truncate: _TRUNCATE = None
    user: Any = None

    @model_validator(mode="after")
    def _has_one(self) -> EmbeddingsRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self

    @property
    def is_single(self) -> bool:
        """Whether the field holds one input and not a list."""
        return self.messages is not None or any(one.is_alone for one in self.input or ())

    @property
    def items(self) -> list[Item]:
        """What is to be embedded."""
        return self.input if self.input is not None else [self.messages or Item("")]


class Embedding(_Response):
    """One vector, of length 1 where it is `float` or `base64`, at the place of its input."""

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


class CohereRequest(_Request):
    """Cohere's request for embeddings, version 2.

    Attributes:
        model: A name from `/v1/models`.
        input_type: Accepted and not used.
        texts: Texts, or
        images: Images, or
        inputs: Objects whose `content` is a list of one text or one image.
        embedding_types: Which forms of each vector are sent; `float` by default.
        output_dimension: Must be the model's own number of values.
        truncate: `END` cuts texts that are too long, `NONE` refuses them.
    """

    model: str | None = _MODEL
    input_type: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: Annotated[
        list[Item] | None,
        BeforeValidator(_cohere_inputs),
        WithJsonSchema({"type": "array", "items": {"type": "object"}}),
    ] = None
    embedding_types: Annotated[list[OutputType], Field(max_length=16)] | None = None
    output_dimension: int | None = Field(default=None, ge=1)
    truncate: _TRUNCATE = None

    @model_validator(mode="after")
    def _has_one(self) -> CohereRequest:
        if sum(bool(one) for one in (self.texts, self.images, self.inputs)) != 1:
            raise ValueError("give one of texts, images and inputs, with at least one item")
        return self

    @property
    def items(self) -> list[Item]:
        """What is to be embedded."""
        texts = [Item(one, "text") for one in self.texts or ()]
        images = [Item(one, "image") for one in self.images or ()]
        return [*texts, *images, *(self.inputs or ())]


class CohereResponse(_Response):
    """Cohere's vectors by type, each list in the order of the inputs."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[str, list[list[float]] | list[str]]
    texts: list[str]
    meta: dict[str, Any]


Condition = Status | Literal["asleep", "waking"]


class ModelCard(_Response):
    """One model by its name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["aioembed"] = "aioembed"
    modalities: list[Modality]
    embedding_dim: int | None = Field(description="Known once the model is loaded.")
    states: dict[Modality, Condition] = Field(
        description="What the model of each modality is doing; one that is asleep is loaded by "
        "the next request."
    )


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

    images: list[ImageField] | None = None
    texts: list[str] | None = None
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


class ClassifyResponse(_Response):
    """How well each label fits, the best first; the probabilities sum to 1."""

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
    is_ready: bool = Field(description="Requests are answered: also by a model that sleeps.")
    is_asleep: bool
    is_waking: bool
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
    """OpenAI's description of an error, with the inputs at fault.

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
    """The body of an answer that is an error.

    Attributes:
        error: What was wrong.
        detail: The message again, where the request was in Jina's shape.
    """

    error: ErrorDetail
    detail: str | None = None


class CohereError(_Response):
    """Cohere's form of an error."""

    id: str
    message: str
    code: str
    param: str | None = None
    items: tuple[ItemError, ...] | None = None


def form_of(body: type[BaseModel], *, with_image: bool) -> dict[str, Any]:
    """Return how a request looks as a form, and as an image alone, for the OpenAPI document.

    Args:
        body: The request in JSON.
        with_image: Whether a body that is an image is taken.
    """
    file = {"type": "string", "format": "binary"}
    properties: dict[str, Any] = {}
    for name, field in body.model_fields.items():
        if name in {"input", "images", "image"}:
            one: dict[str, Any] = {"anyOf": [file, {"type": "string"}]}
        else:
            one = {"type": "integer" if "dimension" in name else "string"}
        many = name in {"input", "images", "texts", "labels", "prompts", "embedding_types"}
        if name not in {"messages", "inputs"}:
            described = {"type": "array", "items": one} if many else one
            properties[name] = {**described, "description": field.description or ""}
    form = {"type": "object", "properties": properties}
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if with_image:
        content["image/*"] = {"schema": file}
    return content
