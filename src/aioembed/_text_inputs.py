"""Texts as the inputs of a text program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ._signature import ModelContract
from .errors import ExecutorchError, InvalidProgram, TokenizerError, shorten
from .models import ModelSpec, Tokenization
from .runtime import Program
from .tokenize import Tokenizer, Tokens

__all__ = ["TextInputs"]

_CLIP_CONTEXT_LENGTH = 77
_CLIP_SPECIAL_TOKENS = 2
_SHORTEST = 2


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Turns texts into a program's inputs.

    Attributes:
        tokenizer: The model's.
        limit: Most tokens that the model reads, special ones included.
        length: How many tokens the program takes; None where any number up to the limit.
        dtypes: Of the program's inputs: the ids and, where there are two, the attention mask.
        tokenization: Where texts are padded and all of the padding is read; None with CLIP.
    """

    tokenizer: Tokenizer
    limit: int
    length: int | None
    dtypes: tuple[str, ...]
    tokenization: Tokenization | None = None

    @classmethod
    def load(
        cls, program: Program, contract: ModelContract, spec: ModelSpec, path: Path | None
    ) -> Self:
        """Load a text program's tokenizer and try both on each other.

        Args:
            program: The loaded program.
            contract: Its inputs and outputs.
            spec: What is known of it from outside.
            path: Of its `tokenizer.json`, where one is known.

        Raises:
            InvalidProgram: The program's inputs are not token ids.
            TokenizerError: There is not a tokenizer, or it does not belong to the program.
            MissingExtra: `tokenizers` is not installed.
        """
        _check_inputs(contract, spec)
        ids, metadata = contract.forward.inputs[0], contract.metadata
        if path is None:
            raise TokenizerError(
                f"no tokenizer.json is known for {shorten(spec.name)}: put it beside the program, "
                "or name it with tokenizer="
            )
        sha256 = metadata.tokenizer_sha256 if metadata else None
        context_length = metadata.context_length if metadata else None
        tokenization = metadata.tokenization if metadata else None
        tokenizer = Tokenizer.load(
            path,
            sha256=sha256 or spec.tokenizer_sha256,
            lowercase=tokenization is not None and tokenization.lowercase,
        )
        if tokenization is None and tokenizer.special_tokens != _CLIP_SPECIAL_TOKENS:
            raise TokenizerError(
                f"{shorten(path)} puts no start in front of a text, as CLIP's does: it "
                f"does not belong to {shorten(spec.name)}"
            )
        text = cls(
            tokenizer=tokenizer,
            limit=min(ids.shape[1], context_length or _CLIP_CONTEXT_LENGTH),
            length=None if ids.dynamic else ids.shape[1],
            dtypes=tuple(info.dtype for info in contract.forward.inputs),
            tokenization=tokenization,
        )
        text.try_on(program)
        return text

    def encode(self, text: str) -> Tokens:
        """Return a text's tokens, at most as many as the model reads.

        CLIP's end with the first end of text, which is the token that CLIP pools; there is
        another behind it in texts that spell `<|endoftext|>` out.

        Raises:
            InvalidUserInput: As `Tokenizer.encode`.
        """
        tokens = self.tokenizer.encode(text, limit=self.limit)
        if self.tokenization is not None:
            return tokens
        first_end = int(np.argmax(tokens.ids == tokens.ids[-1]))
        return Tokens(tokens.ids[: first_end + 1], tokens.count)

    def tensors(self, ids: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the program's inputs `(1, n)`: the ids and, where it wants one, their mask.

        The mask is 1 where the id is not 0, as the React Native hook has it. A program of one
        length gets zeros behind the end of text, which CLIP's causal attention never reads, or
        the model's own padding.
        """
        padding = self.length - len(ids) if self.length else 0
        filler = self.tokenization.pad_id if self.tokenization else 0
        row = np.pad(ids, (0, padding), constant_values=filler)[np.newaxis]
        return tuple(
            np.ascontiguousarray(values, dtype=dtype)
            for values, dtype in zip((row, row != 0), self.dtypes, strict=False)
        )

    def try_on(self, program: Program) -> None:
        """Run the program once with the tokenizer's largest id.

        Raises:
            TokenizerError: The program has no such token.
            ExecutorchError: It fails whatever the ids.
        """
        try:
            program.run(*self.tensors(np.full(_SHORTEST, self.tokenizer.largest_id)))
        except ExecutorchError as exc:
            program.run(*self.tensors(np.zeros(_SHORTEST, dtype=np.int64)))
            raise TokenizerError(
                f"{shorten(self.tokenizer.path)} has ids up to {self.tokenizer.largest_id}, which "
                f"{shorten(program.path)} does not take: it is another model's tokenizer"
            ) from exc


def _check_inputs(contract: ModelContract, spec: ModelSpec) -> None:
    inputs = contract.forward.inputs
    if len(inputs) not in {1, 2} or any(
        len(info.shape) != 2  # noqa: PLR2004
        or info.shape[0] != 1
        or info.shape[1] < _SHORTEST
        or info.dtype not in {"int32", "int64"}
        for info in inputs
    ):
        raise InvalidProgram(
            f"{shorten(spec.name)} takes {'; '.join(map(str, inputs))}, and a text program takes "
            "int64 (1, n) token ids, and maybe their attention mask"
        )
