"""Builds the tiny programs beside this file; needs the [export] extra.

python tests/runtime/programs/build.py [NAME...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import nn
from torch.export import Dim, ExportedProgram, export

_FOLDER = Path(__file__).resolve().parent

Methods = ExportedProgram | dict[str, ExportedProgram]


class Add(nn.Module):
    """a + b, in the portable kernels."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Subtract(nn.Module):
    """a - b, in the portable kernels."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


class Lookup(nn.Module):
    """Row k of the table is (2k, 2k + 1)."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.arange(16, dtype=torch.float32).reshape(8, 2)
        self.register_buffer("table", table)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, self.get_buffer("table"))


class MaskedLookup(nn.Module):
    """Rows of the table times a mask, and how many are masked in."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = Lookup()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lookup.forward(ids) * mask.unsqueeze(-1), mask.sum()


class Scale(nn.Module):
    """A linear whose weights are 0, 1, 2... / 100, row by row, and whose bias is 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            weights = torch.arange(inputs * outputs, dtype=torch.float32) / 100
            self.linear.weight.copy_(weights.reshape(outputs, inputs))
            self.linear.bias.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear.forward(x)


class Stack(nn.Module):
    """Enough matrix products in the portable kernels to last a while: x @ x, `rounds` times."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            x = torch.sin(torch.matmul(x, x))
        return x


def _save(name: str, methods: Methods, *, xnnpack: bool = False, **options: Any) -> None:
    constants = options.pop("constant_methods", None)
    edge = to_edge_transform_and_lower(
        methods,
        partitioner=[XnnpackPartitioner()] if xnnpack else None,
        constant_methods=constants,
    )
    program = edge.to_executorch(ExecutorchBackendConfig(**options))
    path = _FOLDER / f"{name}.pte"
    path.write_bytes(program.buffer)
    print(f"{path.name}: {path.stat().st_size} bytes")


def _export(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> ExportedProgram:
    return export(module.eval(), inputs, **options)


def add() -> None:
    _save("add", _export(Add(), torch.ones(2, 3), torch.ones(2, 3)))


def lookup() -> None:
    _save("lookup", _export(Lookup(), torch.zeros(1, 4, dtype=torch.int64)))


def masked_lookup() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    _save("masked_lookup", _export(MaskedLookup(), ids, torch.ones(1, 4)))


def linear_xnnpack() -> None:
    _save("linear_xnnpack", _export(Scale(8, 4), torch.ones(1, 8)), xnnpack=True)


def linear_dynamic_batch() -> None:
    shapes = ({0: Dim("batch", min=1, max=16)},)
    exported = _export(Scale(8, 4), torch.ones(4, 8), dynamic_shapes=shapes)
    _save("linear_dynamic_batch", exported, xnnpack=True)


def two_methods() -> None:
    pair = torch.ones(2, 3), torch.ones(2, 3)
    _save("two_methods", {"add": _export(Add(), *pair), "subtract": _export(Subtract(), *pair)})


def constants() -> None:
    values = {
        "a_bool": True,
        "an_int": 1 << 40,
        "a_float": 0.1,
        "a_string": "grün, 緑",
        "an_empty_string": "",
        "a_float_list": [0.25, 0.5, 0.75],
        "an_int_list": [1, 2, 3],
        "a_tensor": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "an_int_tensor": torch.tensor([5, 6], dtype=torch.int64),
    }
    exported = _export(Add(), torch.ones(2, 3), torch.ones(2, 3))
    _save("constants", exported, constant_methods=values)


def slow_product() -> None:
    _save("slow_product", _export(Stack(48), torch.ones(192, 192)))


PROGRAMS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        add,
        lookup,
        masked_lookup,
        linear_xnnpack,
        linear_dynamic_batch,
        two_methods,
        constants,
        slow_product,
    )
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or PROGRAMS:
        PROGRAMS[wanted]()
