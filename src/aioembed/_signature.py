"""The contract of a loaded program, put together from the program, its spec and options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ._sidecar import named_preprocessing, read_beside, unknown
from .errors import InvalidConfig, InvalidModelOutput, InvalidProgram, WrongDimensions, shorten
from .models import (
    METADATA_METHOD,
    EmbeddingSpace,
    Modality,
    ModelSpec,
    Preprocessing,
    ProgramMetadata,
    Sidecar,
    local_path,
)
from .runtime import MethodInfo, Program, TensorInfo

__all__ = ["ModelContract", "read_contract"]

_IMAGE_AXES = {3, 4}
_ROWS = 2
"""Axes of vectors of several items."""
_SCHEMA_METHOD = "get_model_schema"
"""React Native ExecuTorch 0.10's constant method with the program's shapes, as JSON."""
_BATCH_METHOD = "forward_batch"
"""A second method whose first axis is dynamic, for programs that have one beside `forward`."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ModelContract:
    """The inputs and outputs of a loaded program.

    Attributes:
        modality: What it embeds.
        preprocessing: Of images; None for text.
        embedding_dim: Values per vector.
        normalized: Whether the program's own vectors have length 1.
        space: Where its vectors live.
        forward: The method for one item.
        batch_method: The method that takes several items at once: `forward_batch` where there
            is one, otherwise `forward`, if its first axis is dynamic.
        max_batch: Most items in one call of it, 1 where the program takes no more.
        metadata: What the program says of itself, if it does.
        output: Which of the program's outputs is the embedding, from 0.
    """

    modality: Modality
    preprocessing: Preprocessing | None
    embedding_dim: int
    normalized: bool
    space: EmbeddingSpace
    forward: MethodInfo
    batch_method: str
    max_batch: int
    metadata: ProgramMetadata | None
    output: int = 0

    def embeddings(self, output: Array, count: int) -> NDArray[np.float32]:
        """Return a program's output as `(count, embedding_dim)` float32 rows of length 1.

        Raises:
            InvalidModelOutput: Of another size or dtype, or with values that are not numbers.
        """
        if output.dtype != np.float32 or output.size != count * self.embedding_dim:
            raise InvalidModelOutput(
                f"the program returned {output.dtype} {output.shape} for {count} inputs; "
                f"wanted float32 ({count}, {self.embedding_dim})"
            )
        rows: NDArray[np.float32] = output.reshape(count, self.embedding_dim)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise InvalidModelOutput("the program returned a vector of zeros, NaN or infinity")
        return rows if self.normalized else rows / lengths


def read_contract(
    program: Program,
    spec: ModelSpec,
    *,
    preprocessing: Preprocessing | str | None = None,
    file_sha256: Callable[[], str],
) -> ModelContract:
    """Put a program's contract together.

    What the caller asks for outranks what the program says, that outranks the files beside it, and
    those outrank the spec. Where none of them says what pixels an image program takes, that is an
    error: a guess would give vectors that look right.

    Args:
        program: The loaded program.
        spec: What is known of it from outside.
        preprocessing: The caller's own, in place of any other; a string names a preset or a file.
        file_sha256: Returns the hash of the program's file, which names the weights where
            nothing better does.

    Raises:
        InvalidProgram: No `forward` method, or metadata that cannot be read.
        UnknownPreprocessing: Nothing says what pixels the program takes.
        InvalidConfig: No such preset, a file that does not say what it should, or several outputs
            of which nothing says which is the embedding.
        WrongDimensions: The preprocessing does not fit the program's input.
    """
    forward = program.methods.get("forward")
    if forward is None or not forward.inputs or not forward.outputs:
        raise InvalidProgram(
            f"{shorten(spec.name)} has no usable method `forward`; "
            f"its methods are {', '.join(program.methods) or 'none'}"
        )
    _check_schema(program, spec)
    metadata = _metadata(program, spec)
    modality = metadata.modality if metadata else spec.modality
    if modality != spec.modality:
        raise InvalidProgram(f"{shorten(spec.name)} embeds {modality}s, not {spec.modality}s")
    path = local_path(spec)
    beside = read_beside(path, forward) if path and metadata is None else Sidecar()
    output = _output(forward, metadata, beside, spec)
    if modality == "image":
        used = _preprocessing(preprocessing, forward, metadata, beside, spec)
        _check_fits(used, forward, spec)
        pixels: Preprocessing | None = used
    elif isinstance(preprocessing, Preprocessing):
        pixels = preprocessing
    else:
        pixels = metadata.preprocessing if metadata else spec.preprocessing
    batch = program.methods.get(_BATCH_METHOD, forward)
    return ModelContract(
        modality=modality,
        preprocessing=pixels if modality == "image" else None,
        output=output,
        embedding_dim=_embedding_dim(forward.outputs[output], metadata, spec),
        normalized=metadata.normalized if metadata else False,
        space=EmbeddingSpace.of(
            weights=metadata.weights_sha256 if metadata else spec.checkpoint or file_sha256(),
            preprocessing=pixels,
            normalized=True,
            precision=metadata.precision if metadata else spec.precision,
            modality=modality,
        ),
        forward=forward,
        batch_method=batch.name,
        max_batch=_max_batch(batch),
        metadata=metadata,
    )


def _metadata(program: Program, spec: ModelSpec) -> ProgramMetadata | None:
    if METADATA_METHOD not in program.constants:
        return None
    try:
        return ProgramMetadata.model_validate_json(str(program.constants[METADATA_METHOD]))
    except (ValidationError, InvalidConfig) as exc:
        raise InvalidProgram(
            f"the metadata inside {shorten(spec.name)} cannot be read; "
            "was it exported by a newer version? Upgrade aioembed or export it again"
        ) from exc


def _check_schema(program: Program, spec: ModelSpec) -> None:
    """Refuse a program whose `get_model_schema` says other shapes than it has.

    The format is that of React Native ExecuTorch 0.10: for each method `inputs` and `outputs`,
    each with `dtype` and `shape`, whose axes are `constant`, `range` or `enum`.

    Raises:
        InvalidProgram: It cannot be read, or does not fit the program.
    """
    if _SCHEMA_METHOD not in program.constants:
        return
    forward = program.methods["forward"]
    try:
        said = json.loads(str(program.constants[_SCHEMA_METHOD]))["forward"]
        for side, infos in (("inputs", forward.inputs), ("outputs", forward.outputs)):
            tensors = [
                (one["dtype"], [_bound(axis) for axis in one["shape"]]) for one in said[side]
            ]
            if tensors != [(info.dtype, [*info.shape]) for info in infos]:
                raise InvalidProgram(
                    f"{_SCHEMA_METHOD} inside {shorten(spec.name)} says of the {side} of forward "
                    f"{tensors}, but they are {', '.join(map(str, infos))}"
                )
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidProgram(
            f"{_SCHEMA_METHOD} inside {shorten(spec.name)} cannot be read ({exc!r}): it is not the "
            "JSON of React Native ExecuTorch 0.10"
        ) from exc


def _bound(axis: dict[str, Any]) -> int:
    """Return the largest size of an axis."""
    match axis["kind"]:
        case "constant":
            return int(axis["value"])
        case "range":
            return int(axis["range"]["max"])
        case "enum":
            return max(map(int, axis["choices"]))
        case kind:
            raise ValueError(f"an axis of the kind {kind!r}")


def _preprocessing(
    given: Preprocessing | str | None,
    forward: MethodInfo,
    metadata: ProgramMetadata | None,
    beside: Sidecar,
    spec: ModelSpec,
) -> Preprocessing:
    if isinstance(given, str):
        return named_preprocessing(given, forward)
    inside = metadata.preprocessing if metadata else None
    said = given or inside or beside.preprocessing or spec.preprocessing
    if said is not None:
        return said
    if forward.inputs[0].dtype != "float32" or len(forward.inputs[0].shape) not in _IMAGE_AXES:
        raise InvalidProgram(
            f"{shorten(spec.name)} takes {forward.inputs[0]}, which is not an image"
        )
    raise unknown(spec.name, forward, local_path(spec))


def _check_fits(pixels: Preprocessing, forward: MethodInfo, spec: ModelSpec) -> None:
    wanted = forward.inputs[0]
    shape = pixels.input_shape
    if wanted.dtype != "float32" or not (wanted.accepts(shape) or wanted.accepts(shape[1:])):
        raise WrongDimensions(
            f"preprocessing gives float32 {shape}, but {shorten(spec.name)} takes {wanted}"
        )


def _output(
    forward: MethodInfo, metadata: ProgramMetadata | None, beside: Sidecar, spec: ModelSpec
) -> int:
    """Return which output is the embedding: the one that is named, or the only one that can be."""
    said = (metadata.output if metadata else None, beside.output, spec.output)
    named = next((output for output in said if output is not None), None)
    vectors = [index for index, info in enumerate(forward.outputs) if len(_vector(info)) <= _ROWS]
    if named is None and (len(vectors) == 1 or len(forward.outputs) == 1):
        return vectors[0] if vectors else 0
    if named is not None and named < len(forward.outputs):
        return named
    outputs = "; ".join(f"{index}: {info}" for index, info in enumerate(forward.outputs))
    problem = "nothing says which" if named is None else f"there is none of number {named}"
    raise InvalidConfig(
        f"one output of {shorten(spec.name)} is the embedding, and {problem} ({outputs}): say it "
        "with ModelSpec(output=...), or aioembed describe FILE --output N --save"
    )


def _vector(info: TensorInfo) -> tuple[int, ...]:
    """Return an output's shape without the ones behind, such as those of a pooling."""
    shape = info.shape
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _embedding_dim(info: TensorInfo, metadata: ProgramMetadata | None, spec: ModelSpec) -> int:
    shape = _vector(info)
    dim = shape[-1] if shape else 0
    claims = (metadata.embedding_dim if metadata else None, spec.embedding_dim)
    wrong = [claim for claim in claims if claim not in {None, dim}]
    if dim < 1 or wrong:
        raise WrongDimensions(
            f"{shorten(spec.name)} gives vectors of {dim} values; "
            f"{wrong[0] if wrong else 'at least one'} was expected"
        )
    return dim


def _max_batch(method: MethodInfo) -> int:
    """Most items in one call: the bound of the first axis, which a text's length is not."""
    first = method.inputs[0]
    return first.shape[0] if first.dynamic else 1
