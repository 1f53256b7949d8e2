"""What a model is: where its file lies, its inputs, the space of its vectors, the named models."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .errors import InvalidConfig, InvalidModelSource, UnknownModel, shorten

__all__ = [
    "CLIP_PREPROCESSING",
    "CLIP_VIT_BASE_PATCH32_IMAGE",
    "CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED",
    "CLIP_VIT_BASE_PATCH32_TEXT",
    "EFFICIENTNET_LITE0",
    "IMAGENET_PREPROCESSING",
    "METADATA_METHOD",
    "MODELS",
    "RNE_PREPROCESSING",
    "RNE_PREPROCESSING_0_10_6",
    "EmbeddingSpace",
    "Frozen",
    "Modality",
    "ModelSource",
    "ModelSpec",
    "Precision",
    "Preprocessing",
    "ProgramMetadata",
    "Sidecar",
    "Tokenization",
    "local_file",
    "local_path",
    "resolve_model",
]

METADATA_METHOD = "aioembed_metadata"
"""Name of the constant method that carries a `ProgramMetadata` as JSON inside a `.pte`."""

Modality = Literal["image", "text"]
Precision = Literal["fp32", "int8"]

_Triple = tuple[float, float, float]
_Level = Annotated[int, Field(ge=0, le=255)]


class Frozen(BaseModel):
    """A value whose fields are checked when it is made.

    Raises:
        InvalidConfig: A field is unknown, missing, of another type or out of its range.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # type checkers read the fields

        def __init__(self, **fields: object) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as exc:
                wrong = "; ".join(
                    f"{'.'.join(map(str, error['loc'])) or 'together'}: "
                    + error["msg"].removeprefix("Value error, ")
                    for error in exc.errors(include_url=False)
                )
                raise InvalidConfig(f"{type(self).__name__} cannot be made: {wrong}") from exc


class Preprocessing(Frozen):
    """How an 8-bit RGB image becomes the program's input; it decides the vector.

    Attributes:
        height: Rows of the program's image, in pixels.
        width: Columns of the program's image, in pixels.
        resize: `stretch` scales both sides to the target, ignoring the aspect ratio. `crop`
            scales the shortest side to the target's, then cuts the centre out. `letterbox`
            scales the image until it fits inside, and fills both sides evenly.
        interpolation: The resampling kernel.
        antialias: Whether the kernel widens with the scale when shrinking (as Pillow does), or
            reads only its fixed neighbourhood (as OpenCV does).
        scale: Factor from 0..255 to the program's range.
        mean: Per channel, subtracted after scaling; zeros where the program does it itself.
        std: Per channel, divided by after subtracting the mean.
        program_mean: Per channel, subtracted inside the program, behind `std`: it changes no pixel,
            but says what the program computes.
        program_std: Per channel, divided by inside the program after that.
        layout: `nchw` gives `(1, 3, height, width)`, `nhwc` `(1, height, width, 3)`, `patches`
            `(1, height / patch_size * width / patch_size, patch_size * patch_size * 3)`, a row
            of the grid after the other, each patch in the order kernel row, kernel column,
            channel.
        patch_size: Side of a patch in pixels, for the layout `patches`.
        shortest_edge: Pixels that `crop` scales the shortest side to; by default the smaller of
            height and width. What the scaled image lacks is filled on all sides.
        pad_value: Levels of red, green and blue, 0 to 255, that fill what the scaled image lacks.
    """

    height: PositiveInt
    width: PositiveInt
    resize: Literal["stretch", "crop", "letterbox"]
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    scale: float = 1 / 255
    mean: _Triple = (0.0, 0.0, 0.0)
    std: _Triple = (1.0, 1.0, 1.0)
    program_mean: _Triple = (0.0, 0.0, 0.0)
    program_std: _Triple = (1.0, 1.0, 1.0)
    layout: Literal["nchw", "nhwc", "patches"] = "nchw"
    patch_size: PositiveInt | None = None
    shortest_edge: PositiveInt | None = None
    pad_value: tuple[_Level, _Level, _Level] = (0, 0, 0)

    @model_validator(mode="after")
    def _values_are_finite(self) -> Self:
        values = (self.scale, *self.mean, *self.std, *self.program_mean, *self.program_std)
        if not all(map(math.isfinite, values)) or 0 in (*self.std, *self.program_std):
            raise ValueError("scale, mean and std must be finite, and std not zero")
        if self.shortest_edge is not None and self.resize != "crop":
            raise ValueError("shortest_edge goes with resize 'crop', and only with it")
        return self

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if (self.layout == "patches") != (self.patch_size is not None):
            raise ValueError("patch_size goes with the layout 'patches', and only with it")
        if self.patch_size and (self.height % self.patch_size or self.width % self.patch_size):
            raise ValueError("patch_size must divide height and width")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image's input, its first axis the batch."""
        if self.layout == "nhwc":
            return (1, self.height, self.width, 3)
        if self.patch_size is None:
            return (1, 3, self.height, self.width)
        patches = (self.height // self.patch_size) * (self.width // self.patch_size)
        return (1, patches, 3 * self.patch_size**2)

    @property
    def pixels_id(self) -> str:
        """Fingerprint of what decides the values, whatever layout or folding the program has.

        Of scale, mean and std, those here and those inside the program, what counts is the factor
        and the offset that they come to per channel.
        """
        edge = padding = None
        if self.resize == "crop":
            edge = self.shortest_edge or min(self.height, self.width)
        if self.resize != "stretch":
            padding = self.pad_value
        geometry = (self.height, self.width, self.resize, edge, padding)
        kernel = (self.interpolation, self.antialias)
        channels = zip(self.mean, self.std, self.program_mean, self.program_std, strict=True)
        values = [
            (
                f"{self.scale / (std * program_std):.9g}",
                f"{-(mean / std + program_mean) / program_std + 0.0:.9g}",
            )
            for mean, std, program_mean, program_std in channels
        ]
        return hashlib.sha256(repr((geometry, kernel, values)).encode()).hexdigest()[:12]


RNE_PREPROCESSING = Preprocessing(
    height=224, width=224, resize="stretch", interpolation="bilinear", antialias=False
)
"""What the React Native hook does up to 0.10.5: OpenCV's bilinear stretch, values / 255."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RNE_PREPROCESSING_0_10_6 = RNE_PREPROCESSING.model_copy(
    update={"mean": _CLIP_MEAN, "std": _CLIP_STD}
)
"""What the hook seems to do from 0.10.6 on: the same pixels, then CLIP's mean and std. Its release
notes say that image embeddings come out different from then on; it could not be tried here."""

IMAGENET_PREPROCESSING = Preprocessing(
    height=224,
    width=224,
    resize="crop",
    shortest_edge=256,
    interpolation="bilinear",
    antialias=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""What torchvision's ImageNet classifiers take: the shortest side 256, the centre 224 x 224."""

CLIP_PREPROCESSING = Preprocessing(
    height=224, width=224, resize="crop", interpolation="bicubic", antialias=True
)
"""What CLIP was trained with: bicubic, shortest side 224, centre crop (mean and std are folded
into the programs exported here)."""


class EmbeddingSpace(Frozen):
    """The space vectors live in: they compare only within one.

    Attributes:
        base: Fingerprint of checkpoint, image preprocessing and normalisation; the same for the
            fp32 and int8 programs of one checkpoint.
        precision: Of the program's weights. Vectors of two precisions over one base may be
            compared, with the small error that the exporter's report states.
        modality: What the vectors are of.
        weights: Fingerprint of the checkpoint alone, which vectors of images and of texts compare
            by; None where it is not known.
    """

    base: str
    precision: Precision = "fp32"
    modality: Modality = "image"
    weights: str | None = None

    def __eq__(self, other: object) -> bool:
        """Spaces of one `id` are equal, whatever else is known of them."""
        return isinstance(other, EmbeddingSpace) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """The base, with the precision behind it where that is not fp32."""
        return self.base if self.precision == "fp32" else f"{self.base}+{self.precision}"

    def is_compatible(self, other: EmbeddingSpace) -> bool:
        """Whether vectors of the two spaces may be compared.

        Those of images with each other where the spaces differ in precision at most; those of
        images and texts where both are of one checkpoint.
        """
        if self.modality != other.modality and None not in {self.weights, other.weights}:
            return self.weights == other.weights
        return self.base == other.base

    @classmethod
    def of(
        cls,
        *,
        weights: str,
        preprocessing: Preprocessing | None,
        normalized: bool,
        precision: Precision,
        modality: Modality = "image",
    ) -> Self:
        """Make the space of a checkpoint.

        Args:
            weights: Fingerprint or name of the checkpoint the program was made from.
            preprocessing: Of the images in this space; None where it has none.
            normalized: Whether the vectors have length 1.
            precision: Of the program's weights.
            modality: What the vectors are of.
        """
        pixels = preprocessing.pixels_id if preprocessing else ""
        return cls(
            base=_fingerprint(f"{weights}|{pixels}|{normalized}"),
            precision=precision,
            modality=modality,
            weights=_fingerprint(weights),
        )


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Tokenization(Frozen):
    """How a text becomes a program's token ids where a `tokenizer.json` alone does not say it.

    Attributes:
        lowercase: Whether the text is lower-cased before it is tokenised.
        pad_id: Fills the ids behind the end of text up to the context length, and is read: the
            program has no mask.
    """

    lowercase: bool
    pad_id: NonNegativeInt


class ProgramMetadata(Frozen):
    """What a program exported here says of itself.

    It lies inside the program as JSON, in the constant method `aioembed_metadata`.

    Attributes:
        format: Version of this record.
        name: Of the model.
        modality: What it embeds.
        embedding_dim: Values per vector.
        normalized: Whether the program's vectors have length 1.
        preprocessing: Of images. In a text program: that of the image tower it goes with.
        context_length: Most tokens a text program takes, special tokens included.
        tokenizer_sha256: Of the `tokenizer.json` a text program was exported with.
        tokenization: Of a text program whose texts are padded, as SigLIP's are; None where they
            are not, as with CLIP.
        weights_sha256: Fingerprint of the checkpoint.
        precision: Of the weights.
        logit_scale: Factor on cosine similarities before the softmax or sigmoid.
        logit_bias: Added after the factor. A checkpoint that has one was trained with a sigmoid
            per pair of image and text, as SigLIP; the others with a softmax over the texts.
        output: Which of several outputs is the embedding, from 0.
        recipe: Version of the exporter's graph rewrite.
    """

    format: Literal[1] = 1
    name: str
    modality: Modality
    embedding_dim: PositiveInt
    normalized: bool
    preprocessing: Preprocessing | None = None
    context_length: PositiveInt | None = None
    tokenizer_sha256: str | None = None
    tokenization: Tokenization | None = None
    weights_sha256: str
    precision: Precision = "fp32"
    logit_scale: float | None = None
    logit_bias: float | None = None
    output: NonNegativeInt | None = None
    recipe: str

    @property
    def space(self) -> EmbeddingSpace:
        """The space the program's vectors live in."""
        return EmbeddingSpace.of(
            weights=self.weights_sha256,
            preprocessing=self.preprocessing,
            normalized=self.normalized,
            precision=self.precision,
            modality=self.modality,
        )


class Sidecar(Frozen):
    """What a file `NAME.json` beside `NAME.pte` says of a program that carries no metadata.

    Attributes:
        format: Version of this record.
        preprocessing: Of images.
        output: Which of several outputs is the embedding, from 0.
    """

    format: Literal[1] = 1
    preprocessing: Preprocessing | None = None
    output: NonNegativeInt | None = None


class ModelSpec(Frozen):
    """A model that can be named.

    Attributes:
        name: For people and command lines, such as `efficientnet-lite0`.
        source: `embedded:FILE` (ships with the library), an `https:` URL, or a path.
        modality: What it embeds.
        embedding_dim: Values per vector, where known.
        normalized: Whether the program's vectors have length 1.
        size_bytes: Of the file, where known; one of another size is logged as a warning.
        sha256: Of the file, 64 hexadecimal digits, where known.
        preprocessing: For programs that carry none themselves.
        output: Which of several outputs is the embedding, from 0, where the program does not say.
        tokenizer_source: URL or path of `tokenizer.json`, for text.
        tokenizer_sha256: Of that file, where known.
        checkpoint: Name of the weights, for programs that carry no fingerprint of them; image
            and text programs of one checkpoint name the same.
        precision: Of the weights.
        licence: SPDX identifier of the weights' licence.
        summary: One line for listings.
    """

    name: str
    source: str
    modality: Modality
    embedding_dim: PositiveInt | None = None
    normalized: bool = True
    size_bytes: PositiveInt | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    preprocessing: Preprocessing | None = None
    output: NonNegativeInt | None = None
    tokenizer_source: str | None = None
    tokenizer_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    checkpoint: str | None = None
    precision: Precision = "fp32"
    licence: str | None = None
    summary: str = ""


ModelSource = ModelSpec | str | os.PathLike[str]
"""What a model can be given as: a `ModelSpec`, a registered name, a URL, or a path."""

_EMBEDDED_SCHEME = "embedded:"

_HUB = (
    "https://huggingface.co/software-mansion/react-native-executorch-clip-vit-base-patch32"
    "/resolve/v0.9.0"
)
_CHECKPOINT = "openai/clip-vit-base-patch32"

EFFICIENTNET_LITE0 = ModelSpec(
    name="efficientnet-lite0",
    source="embedded:efficientnet_lite0.pte",
    modality="image",
    embedding_dim=1280,
    size_bytes=4_064_256,
    sha256="77b2e2edb1a7995a4f6ae7002689f17fee636c4a3d190277f0e608ed72e363dd",
    precision="int8",
    licence="Apache-2.0",
    summary="EfficientNet-Lite0 trained on ImageNet, int8 (4.1 MB); ships with the library",
)
CLIP_VIT_BASE_PATCH32_IMAGE = ModelSpec(
    name="clip-vit-base-patch32-image",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_image_xnnpack_fp32.pte",
    size_bytes=351_606_400,
    modality="image",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    checkpoint=_CHECKPOINT,
    licence="MIT",
    summary="CLIP ViT-B/32, image tower, fp32 (352 MB); the file the React Native hook uses",
)
CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED = ModelSpec(
    name="clip-vit-base-patch32-image-quantized",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_image_xnnpack_int8.pte",
    size_bytes=96_351_232,
    modality="image",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    checkpoint=_CHECKPOINT,
    precision="int8",
    licence="MIT",
    summary="CLIP ViT-B/32, image tower, int8 (96.4 MB); the file the React Native hook uses",
)
CLIP_VIT_BASE_PATCH32_TEXT = ModelSpec(
    name="clip-vit-base-patch32-text",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_text_xnnpack_fp32.pte",
    size_bytes=253_953_152,
    modality="text",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    tokenizer_source=f"{_HUB}/tokenizer.json",
    checkpoint=_CHECKPOINT,
    licence="MIT",
    summary="CLIP ViT-B/32, text tower, fp32 (254 MB); shares its space with the image tower",
)
MODELS = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            EFFICIENTNET_LITE0,
            CLIP_VIT_BASE_PATCH32_IMAGE,
            CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED,
            CLIP_VIT_BASE_PATCH32_TEXT,
        )
    }
)
"""Every registered model by its name."""


def resolve_model(
    source: ModelSource, *, modality: str = "image", sha256: str | None = None
) -> ModelSpec:
    """Return the spec of a model source, without any I/O.

    Args:
        source: A `ModelSpec`, a registered name, an `https:`, `http:` or `file:` URL, or a path.
        modality: What a source that does not say embeds, `image` or `text`.
        sha256: What the file must hash to, in place of what the source says of it.

    Raises:
        UnknownModel: A bare word that is not a registered name.
        InvalidModelSource: Of another type, empty, or of a scheme that cannot be loaded.
        InvalidConfig: `sha256` is malformed.
    """
    spec = _resolve(source, modality)
    return spec if sha256 is None else ModelSpec(**{**dict(spec), "sha256": sha256})


def _resolve(source: ModelSource, modality: str) -> ModelSpec:
    if isinstance(source, ModelSpec):
        return source
    if isinstance(source, os.PathLike):
        return _custom(os.fspath(source), modality)
    text: object = source
    if not isinstance(text, str) or not source:
        raise InvalidModelSource(
            f"a model source is a ModelSpec, a name, a URL or a path, not {shorten(source)}"
        )
    if source in MODELS:
        return MODELS[source]
    before, colon, after = source.partition(":")
    scheme = before.lower() if colon and (after.startswith("//") or before == "file") else ""
    if scheme == "file" and _host_of_file_url(source) not in {"", "localhost"}:
        raise InvalidModelSource(f"{shorten(source)} names a file of another host")
    if scheme in {"http", "https", "file"} or (not scheme and _looks_like_path(source)):
        return _custom(source, modality)
    if scheme:
        raise InvalidModelSource(
            f"cannot load a model from {shorten(source)}: use https:, http:, file: or a path"
        )
    raise _unknown(source)


def local_path(spec: ModelSpec) -> Path | None:
    """Return where a spec's file lies on this machine, None where it must be fetched."""
    return local_file(spec.source)


def local_file(source: str) -> Path | None:
    """Return where a file that a spec names lies on this machine, None where it must be fetched.

    Args:
        source: A path, an `embedded:`, `file:`, `https:` or `http:` URL.

    Raises:
        InvalidModelSource: A `file:` URL that names another host.
    """
    if source.startswith(_EMBEDDED_SCHEME):
        return Path(__file__).with_name("data") / source.removeprefix(_EMBEDDED_SCHEME)
    scheme = source.partition(":")[0].lower()
    if scheme in {"http", "https"} and "://" in source:
        return None
    if scheme != "file":
        return _expanded(source)
    return Path(unquote(urlsplit(source).path))


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise InvalidModelSource(f"{shorten(path)} cannot be found: {exc}") from exc


def _custom(source: str, modality: str) -> ModelSpec:
    name = source.rstrip("/").rpartition("/")[2]
    if "://" in source:  # without its query and a user's password
        name = source.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition("@")[2]
    name = name or source
    return ModelSpec.model_validate({"name": name, "source": source, "modality": modality})


def _host_of_file_url(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as exc:
        raise InvalidModelSource(f"{shorten(url)} is malformed: {exc}") from exc


def _looks_like_path(text: str) -> bool:
    return os.sep in text or text.endswith(".pte") or text.startswith((".", "~"))


def _unknown(name: str) -> UnknownModel:
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(MODELS)}"
    if name.lower() == "gist-512":
        hint = "it was removed in 0.2.0; use efficientnet-lite0, and embed your pictures again"
    return UnknownModel(f"no model is named {shorten(name)}: {hint} (a path needs a / or .pte)")
