"""Texts of every kind that a tokenizer may meet, the same ones in every run."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

_WORDS = (
    "a photo of the cat dog's they're we've I'd it'll don't rocket COFFEE Naïve café über "
    "2024 3.14 #1 e-mail http://example.org/x?y=1 <b>bold</b> 'quoted' !!! ... -- snake_case"
)
_EMOJI = "😀🚀❤️👍🏽👨‍👩‍👧🏳️‍🌈🇩🇪🔥✨"
_SPACES = " \t\n\r\u00a0\u2003\u3000"
_SCRIPTS = "日本語한국어РусскийΕλληνικάعربيעבריתहिन्दीไทย中文"
_FIXED = [
    "",
    " ",
    "\n\n\n",
    "a" * 10_000,
    "a photo of a cat, " * 556,
    "日本" * 5_000,
    "😀" * 2_500,
    "0123456789" * 1_000,
    "line one\nline two\r\nline three",
    "nul\x00 inside, bell\x07, escape\x1b[0m",
    "\ufeffbyte order mark",
    "e\u0301 is \u00e9, \u1e9b\u0323 and \ufb01",
    "\u0130stanbul \u00c5\u212b \u1e9e",
    "private \ue000 use, noncharacter \uffff, last \U0010ffff",
    "zero\u200bwidth\u200djoiner\u00adhyphen",
]
_COUNT = 500


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS.split(), k=rng.randint(1, 40)))


def _characters(alphabet: str) -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choices(alphabet, k=rng.randint(1, 60)))


def _assigned(rng: random.Random) -> str:
    characters = (chr(rng.randrange(0x20, 0x2FFFF)) for _ in range(60))
    return "".join(c for c in characters if unicodedata.category(c) not in {"Cn", "Cs", "Cc"})


def _mixed(rng: random.Random) -> str:
    kinds = (_sentence, _characters(_EMOJI), _characters(_SPACES), _characters(_SCRIPTS), _assigned)
    return "".join(rng.choice(kinds)(rng) for _ in range(5))


def texts() -> list[str]:
    """Return 500 texts, some empty, some of 10,000 characters."""
    rng = random.Random(20210226)
    kinds = (
        _sentence,
        _characters(_EMOJI),
        _characters(_SPACES + "ab'1!"),
        _characters(_SCRIPTS),
        _assigned,
        _mixed,
    )
    made = [kinds[index % len(kinds)](rng) for index in range(_COUNT - len(_FIXED))]
    return [*_FIXED, *made]
