"""A tokenizer in the format of Hugging Face's `tokenizer.json`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidUserInput, MissingExtra, TextTooLong, TokenizerError, shorten

if TYPE_CHECKING:
    from tokenizers import Tokenizer as NativeTokenizer

__all__ = ["MAX_CHARACTERS", "Tokenizer", "Tokens"]

MAX_CHARACTERS = 100_000
"""Longest text that is tokenised at all: far beyond what any model reads, and still quick."""

_CHARACTERS_PER_TOKEN = 100
_SPECIAL_TOKENS = 2
"""Most that a model puts around a text: CLIP a start and an end, SigLIP an end alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: int64 `(n,)`: start of text (where the model has one), the text's tokens up to the
            limit, end of text.
        count: Tokens of the text, special ones included; more than `n` where it was cut. Of a
            very long text, those of its beginning are counted.
    """

    ids: NDArray[np.int64]
    count: int


class Tokenizer:
    """A loaded tokenizer, which many threads may use at the same time. Make one with `load`.

    Attributes:
        path: Of the `tokenizer.json`.
        largest_id: No text has a token with a larger id.
        special_tokens: 2 where a start and an end are put around a text, 1 where an end alone.
    """

    path: Path
    largest_id: int
    special_tokens: int

    def __init__(self, path: Path, native: NativeTokenizer) -> None:
        self.path = path
        self._native = native
        special = native.encode("").ids
        if not 1 <= len(special) <= _SPECIAL_TOKENS:
            raise TokenizerError(
                f"{shorten(path)} puts {len(special)} special tokens around a text, not an end of "
                "text and maybe a start: it belongs to a model of another kind, or has no "
                "post-processor"
            )
        self.special_tokens = len(special)
        self.largest_id = max(*special, native.get_vocab_size() - 1)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        lowercase: bool = False,
    ) -> Self:
        """Read a `tokenizer.json`. Blocks: use a worker thread.

        The file's own truncation and padding are ignored.

        Args:
            path: Of the file.
            sha256: What the file's hash must be, as 64 hexadecimal digits.
            lowercase: Lower-case every text first, whatever the file says.

        Raises:
            TokenizerError: The file cannot be read, has another hash, is not a tokenizer, or does
                not put an end behind a text.
            MissingExtra: `tokenizers` is not installed.
        """
        location = Path(path)
        data = _read(location)
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise TokenizerError(
                f"{shorten(location)} has sha256 {found[:12]}…, but the model was made with "
                f"{sha256[:12]}…: it is another model's tokenizer, or a damaged file"
            )
        native = _parse(location, data)
        if lowercase:
            _lower_first(native)
        return cls(location, native)

    def encode(self, text: str, *, limit: int) -> Tokens:
        """Return a text's tokens, at most `limit`, the end of text always among them.

        Blocks with the GIL released for 10 ms per 10,000 characters or so: use a worker thread.
        Of a text that is far longer than `limit` tokens only the beginning is tokenised.

        Args:
            text: Of any length up to `MAX_CHARACTERS`; may be empty.
            limit: Most tokens, special ones included; at least 2.

        Raises:
            InvalidUserInput: No `str`, or one with lone surrogates.
            TextTooLong: More than `MAX_CHARACTERS` characters.
        """
        text = _checked(text)
        beginning = text[: limit * _CHARACTERS_PER_TOKEN]
        ids = np.array(self._native.encode(beginning).ids, dtype=np.int64)
        if len(ids) <= limit and len(beginning) < len(text):  # blanks, or words without end
            ids = np.array(self._native.encode(text).ids, dtype=np.int64)
        count = len(ids)
        if count > limit:
            ids = np.concatenate((ids[: limit - 1], ids[-1:]))
        return Tokens(ids, count)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise TokenizerError(
            f"cannot read the tokenizer {shorten(path)}: {exc.strerror}; put the model's "
            "tokenizer.json there, or name another with tokenizer="
        ) from exc


def _parse(path: Path, data: bytes) -> NativeTokenizer:
    try:
        import tokenizers  # noqa: PLC0415
    except ImportError as exc:
        raise MissingExtra("tokenizers", "text") from exc
    try:
        native = tokenizers.Tokenizer.from_buffer(data)
    except Exception as exc:  # the library raises nothing narrower
        raise TokenizerError(
            f"{shorten(path)} is not a tokenizer.json, or of a newer version: {exc}"
        ) from exc
    native.no_truncation()
    native.no_padding()
    return native


def _lower_first(native: NativeTokenizer) -> None:
    from tokenizers import normalizers  # noqa: PLC0415

    steps = [normalizers.Lowercase()]
    if native.normalizer is not None:
        steps.append(native.normalizer)
    native.normalizer = normalizers.Sequence(steps)


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidUserInput(f"a text is a str, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise TextTooLong(
            f"{shorten(text)} has {len(text)} characters and {MAX_CHARACTERS} is the most: "
            "embed its parts instead"
        )
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidUserInput(
            f"{shorten(ascii(text))} has a lone surrogate at {exc.start}, which no text encoding "
            'has: decode the bytes it came from with errors="replace"'
        ) from exc
    return text
