"""CLIP's byte-pair encoding: its file format, and a slow reference in plain Python."""

from __future__ import annotations

import gzip
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 48_894
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

Merge = tuple[str, str]


def byte_symbols() -> dict[int, str]:
    """Return the printable character that stands for each byte, in the vocabulary's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in symbols)
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return symbols


def read_merges(path: Path) -> list[Merge]:
    """Return the merges of the list that was published with CLIP."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : CLIP_MERGES + 1]
    return [_pair(line.split()) for line in lines]


def vocabulary(merges: Iterable[Merge]) -> dict[str, int]:
    """Return the ids of all tokens: bytes, bytes that end a word, merges, the special two."""
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def tokenizer_json(merges: Sequence[Merge]) -> dict[str, Any]:
    """Return the contents of a `tokenizer.json` such as CLIP's on the hub."""
    vocab = vocabulary(merges)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": token == START,
                "special": True,
            }
            for token in (START, END)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _WORDS},
                    "behavior": "Removed",
                    "invert": True,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocab[END]],
            "cls": [START, vocab[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": vocab,
            "merges": [" ".join(merge) for merge in merges],
        },
    }


def train(words: Iterable[str], count: int) -> list[Merge]:
    """Return the merges that byte-pair encoding learns from words, ties broken by the alphabet."""
    frequencies = {_symbols(word): n for word, n in Counter(words).items()}
    merges: list[Merge] = []
    while len(merges) < count:
        pairs: Counter[Merge] = Counter()
        for symbols, n in frequencies.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        frequencies = {_join(symbols, best): n for symbols, n in frequencies.items()}
    return merges


class ReferenceTokenizer:
    """Encodes as the tokenizer published with CLIP does, without any library."""

    def __init__(self, merges: Sequence[Merge]) -> None:
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._vocab = vocabulary(merges)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with those of its start and end."""
        normal = " ".join(unicodedata.normalize("NFC", text).split()).lower()
        tokens = itertools.chain.from_iterable(map(self._merged, split_words(normal)))
        return [self._vocab[token] for token in (START, *tokens, END)]

    def _merged(self, word: str) -> tuple[str, ...]:
        symbols = _symbols(word)
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=self._rank)
            if best not in self._ranks:
                break
            symbols = _join(symbols, best)
        return symbols

    def _rank(self, pair: Merge) -> int:
        return self._ranks.get(pair, len(self._ranks))


def split_words(text: str) -> Iterator[str]:
    """Iterate over contractions, runs of letters, single digits, runs of anything else."""
    place = 0
    while place < len(text):
        rest = text[place : place + 3]
        word = next((c for c in _CONTRACTIONS if rest.startswith(c)), None)
        if word is None:
            kind = _kind(text[place])
            run = itertools.takewhile(lambda c, kind=kind: _kind(c) == kind, text[place:])  # type: ignore[misc]
            word = text[place] if kind == "N" else "".join(run)
        place += len(word)
        if not word.isspace():
            yield word


def _kind(character: str) -> str:
    """Return `L` for a letter, `N` for a number, a space for white space, else an empty string."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else ""


def _symbols(word: str) -> tuple[str, ...]:
    """Return a word's bytes as symbols, the last one marked as the word's end."""
    table = byte_symbols()
    symbols = [table[byte] for byte in word.encode()]
    return (*symbols[:-1], f"{symbols[-1]}</w>")


def _join(symbols: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    """Return the symbols with every occurrence of a pair made one."""
    joined: list[str] = []
    place = 0
    while place < len(symbols):
        found = symbols[place : place + 2] == pair
        joined.append("".join(pair) if found else symbols[place])
        place += 2 if found else 1
    return tuple(joined)


def _pair(parts: Sequence[str]) -> Merge:
    left, right = parts
    return left, right
