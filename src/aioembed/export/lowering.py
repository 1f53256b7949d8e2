"""The one way from a torch module to an XNNPACK program: export, quantise, partition, serialise."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from aioembed.errors import ExportError, InvalidConfig, MissingExtra
from aioembed.models import METADATA_METHOD, Precision, ProgramMetadata

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

__all__ = ["Delegation", "Lowered", "lower"]


@dataclass(frozen=True)
class Delegation:
    """What XNNPACK took of a program.

    Attributes:
        calls: How many times one forward pass enters XNNPACK.
        ops_outside: Names of the operators that run outside any delegate, in the graph's order.
    """

    calls: int
    ops_outside: tuple[str, ...]


@dataclass(frozen=True)
class Lowered:
    """A program that is ready to be written to a `.pte` file.

    Attributes:
        parts: The file's bytes, one part after the other: joined, they would be there twice.
        delegation: What XNNPACK took of the program.
    """

    parts: Sequence[bytes] = field(repr=False)
    delegation: Delegation

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return sum(map(len, self.parts))

    def write(self, path: Path) -> None:
        """Write the program to `path`: to a temporary file beside it, then renamed over it.

        Raises:
            OSError: The folder cannot be written.
        """
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(self.parts)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def lower(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    metadata: ProgramMetadata | None = None,
    constant_methods: Mapping[str, object] | None = None,
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | None = None,
    precision: Precision = "fp32",
    exempt: Collection[str] = (),
) -> Lowered:
    """Lower a torch module to an ExecuTorch program on XNNPACK.

    The same module and the same versions of torch and ExecuTorch give the same bytes.

    Args:
        module: In evaluation mode; its `forward` becomes the program's method `forward`.
        example_inputs: One tensor per input, of the shapes and dtypes that the program takes.
        metadata: Stored as JSON in the constant method `aioembed_metadata`.
        constant_methods: Further constant methods: int, float, bool, str, list or tensor by name.
        dynamic_shapes: As `torch.export.export` takes them; static where None.
        precision: `int8` quantises linears and convolutions: weights per channel, activations
            dynamically. Depthwise convolutions stay float32, as XNNPACK's quantiser leaves them.
        exempt: Names of linears and convolutions of the module that stay float32 even then.

    Returns:
        The program's bytes, and what XNNPACK took of it.

    Raises:
        MissingExtra: torch or executorch is not installed.
        InvalidConfig: A constant method has the metadata's name.
        ExportError: torch or ExecuTorch cannot take the module, or an axis that was to vary.
    """
    constants = _constants(metadata, constant_methods)
    with warnings.catch_warnings(action="ignore"):  # the exporter's packages warn about themselves
        try:
            quantizer = None if precision == "fp32" else _quantizer(exempt)
            return _lower(module, example_inputs, constants, dynamic_shapes, quantizer)
        except ImportError as exc:
            raise MissingExtra("executorch", "export") from exc
        except (RuntimeError, AssertionError, ValueError) as exc:  # of torch and ExecuTorch
            varying = "" if dynamic_shapes is None else " with these dynamic shapes"
            reason = " ".join(str(exc).partition("\n\n")[0].split())
            msg = f"{type(module).__name__} cannot be lowered{varying}: {reason}"
            raise ExportError(msg) from exc


def _lower(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    constants: dict[str, object],
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | None,
    quantizer: XNNPACKQuantizer | None,
) -> Lowered:
    """Do what `lower` says, with warnings silenced."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad(), _shared_provenance():
        exported = torch.export.export(module.eval(), example_inputs, dynamic_shapes=dynamic_shapes)
        if quantizer is not None:
            quantized = _quantize(exported.module(), example_inputs, quantizer)
            exported = torch.export.export(quantized, example_inputs, dynamic_shapes=dynamic_shapes)
        edge = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods=constants
        )
        delegation = _delegation(edge.exported_program().graph_module)
        file = _PartsOfFile()
        edge.to_executorch().write_to_file(file)
        return Lowered(tuple(file.parts), delegation)


class _PartsOfFile(io.BufferedIOBase):
    """Keeps what is written to it, without a copy."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, part: ReadableBuffer, /) -> int:
        self.parts.append(bytes(part))
        return len(self.parts[-1])


@contextmanager
def _shared_provenance() -> Iterator[None]:
    """Share the records of what each node came from, which nothing here reads.

    torch copies all of a node's history in every pass, and so spent most of an export.
    """
    from torch.fx.traceback import NodeSource

    with patch.object(NodeSource, "__deepcopy__", lambda source, _memo: source, create=True):
        yield


def _constants(
    metadata: ProgramMetadata | None, others: Mapping[str, object] | None
) -> dict[str, object]:
    """Return all constant methods, the metadata among them."""
    constants = dict(others or {})
    if metadata is not None:
        if METADATA_METHOD in constants:
            raise InvalidConfig(f"{METADATA_METHOD!r} is the metadata's; name yours differently")
        constants[METADATA_METHOD] = metadata.model_dump_json(exclude_none=True)
    return constants


def _quantizer(exempt: Collection[str]) -> XNNPACKQuantizer:
    """Return what makes weights int8: symmetric per channel, activations per call."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    kept = {f"{name}.weight" for name in exempt}

    def is_quantized(node: torch.fx.Node) -> bool:
        return not any(source.target in kept for source in node.all_input_nodes)

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config).set_filter_function(is_quantized)


def _quantize(
    graph: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    quantizer: XNNPACKQuantizer,
) -> torch.nn.Module:
    """Return the graph with quantised weights."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(graph, quantizer)
    prepared(*example_inputs)
    return cast("torch.nn.Module", convert_pt2e(prepared))


def _delegation(graph_module: torch.fx.GraphModule) -> Delegation:
    """Return what is inside delegates and what is not."""
    names = [
        getattr(node.target, "__name__", str(node.target))
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    ]
    delegated = [name for name in names if name == "executorch_call_delegate"]
    outside = [name for name in names if name not in {"executorch_call_delegate", "getitem"}]
    return Delegation(len(delegated), tuple(outside))
