"""A loaded program with its contract: what runs batches in the worker thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._signature import ModelContract, read_contract
from ..models import ModelSpec, Preprocessing
from ..runtime import Program, set_thread_count
from .files import ModelFiles
from .replicas import Replicas
from .text_inputs import TextInputs

__all__ = ["Inputs", "LoadedModel"]

Inputs = tuple[NDArray[Any], ...]
"""The tensors of one item, each with a first axis of 1."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A program and its contract. Every method blocks: call it in a worker thread.

    Attributes:
        replicas: What runs: as many batches at the same time as there are copies.
        contract: What it takes and gives.
        text: Makes the inputs of a text program; None for images.
    """

    replicas: Replicas
    contract: ModelContract
    text: TextInputs | None = None

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        spec: ModelSpec,
        *,
        threads: int | None,
        replicas: int = 1,
        niceness: int = 0,
        preprocessing: Preprocessing | None,
    ) -> LoadedModel:
        """Load a program and read its contract.

        Args:
            files: Where the program lies.
            spec: What is known of the model.
            threads: 1 for a model that computes in its own thread alone; another number sets
                the process's pool, before anything else was loaded; None leaves it as it is.
            replicas: How many copies, each of which computes in its own thread alone where there
                are several.
            niceness: As for `Program.load`.
            preprocessing: The caller's own, in place of the program's.

        Raises:
            ModelError: The file, the program or its contract is at fault.
            TokenizerError: A text program's tokenizer is missing or does not belong to it.
            MissingExtra: A text program, and `tokenizers` is not installed.
            InvalidConfig: The pool's size can no longer change.
        """
        with ExitStack() as undo:
            if threads is not None and threads > 1:
                set_thread_count(threads)
            alone = 1 if threads == 1 or replicas > 1 else None
            program = Program.load(files.model, threads=alone, niceness=niceness)
            undo.callback(program.close)
            contract = read_contract(
                program, spec, preprocessing=preprocessing, file_sha256=files.sha256
            )
            is_text = contract.modality == "text"
            text = TextInputs.load(program, contract, spec, files) if is_text else None
            programs = [program]
            for _ in range(replicas - 1):
                programs.append(Program.load(files.model, threads=alone, niceness=niceness))
                undo.callback(programs[-1].close)
            undo.pop_all()
        return cls(Replicas(programs), contract, text)

    def run(self, batch: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        """Embed the items of a batch.

        Returns:
            A float32 vector `(embedding_dim,)` of length 1 for each item.

        Raises:
            ModelError: The program refused the input or returned no embedding.
        """
        if len(batch) > 1 and self.contract.max_batch > 1 and _stackable(batch):
            stacked = [np.concatenate(tensors) for tensors in zip(*batch, strict=True)]
            output = self.replicas.run(*stacked, method=self.contract.batch_method)[0]
            return list(self.contract.embeddings(output, len(batch)))
        return [self._run_one(inputs) for inputs in batch]

    def _run_one(self, inputs: Inputs) -> NDArray[np.float32]:
        shapes = [info.shape for info in self.contract.forward.inputs]
        fitted = [
            tensor[0] if tensor.ndim == len(shape) + 1 else tensor
            for tensor, shape in zip(inputs, shapes, strict=True)
        ]
        output = self.replicas.run(*fitted, method=self.contract.forward.name)[0]
        return self.contract.embeddings(output, 1).reshape(-1)

    def close(self) -> None:
        """Free the programs' memory, when the runs in flight have ended."""
        self.replicas.close()


def _stackable(batch: Sequence[Inputs]) -> bool:
    """Whether all items have one shape; texts have not where their lengths differ."""
    return len({inputs[0].shape for inputs in batch}) == 1
