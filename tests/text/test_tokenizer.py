"""Texts to token ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioembed.errors import InvalidUserInput, MissingExtra, TextTooLong, TokenizerError
from aioembed.tokenize import MAX_CHARACTERS, Tokenizer

from .clip_bpe import END, START, Merge, ReferenceTokenizer, tokenizer_json, vocabulary
from .strings import texts

_UNLIMITED = 10**6


def _comparable(text: str) -> bool:
    """Whether Python's own idea of spaces and of Greek lower case is the tokenizers'."""
    return not any(c in "Σ\x00\x07\x1b\uffff\U0010ffff" for c in text)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


def test_the_ids_are_those_of_the_published_algorithm(
    tokenizer: Tokenizer, small_merges: list[Merge]
) -> None:
    reference = ReferenceTokenizer(small_merges)
    compared = [text for text in texts() if _comparable(text)]
    assert len(compared) > 450
    for text in compared:
        assert tokenizer.encode(text, limit=_UNLIMITED).ids.tolist() == reference.encode(text)


def test_clips_own_merges_give_the_ids_of_the_published_algorithm(
    clip_tokenizer_file: Path, clip_merges: list[Merge]
) -> None:
    tokenizer, reference = Tokenizer.load(clip_tokenizer_file), ReferenceTokenizer(clip_merges)
    assert tokenizer.largest_id == 49_407
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.encode("a photo of a cat", limit=77).ids.tolist() == cat
    for text in filter(_comparable, texts()):
        assert tokenizer.encode(text, limit=_UNLIMITED).ids.tolist() == reference.encode(text)


@pytest.mark.export
@pytest.mark.parametrize("merges_fixture", ["small_merges", "clip_merges"])
def test_the_ids_are_those_of_transformers(
    merges_fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    merges: list[Merge] = request.getfixturevalue(merges_fixture)
    vocab = vocabulary(merges)
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(merges)), encoding="utf-8")
    ours = Tokenizer.load(path)
    strings = texts()
    assert len(strings) == 500
    for text in strings:
        assert ours.encode(text, limit=_UNLIMITED).ids.tolist() == theirs(text)["input_ids"]
        cut = theirs(text, truncation=True, max_length=77)["input_ids"]
        assert ours.encode(text, limit=77).ids.tolist() == cut


def test_start_and_end_surround_an_empty_text(
    tokenizer: Tokenizer, small_merges: list[Merge]
) -> None:
    vocab = vocabulary(small_merges)
    tokens = tokenizer.encode("", limit=77)
    assert tokens.ids.tolist() == [vocab[START], vocab[END]]
    assert tokens.ids.dtype == np.int64
    assert tokens.count == 2


def test_a_long_text_is_cut_and_keeps_its_end_token(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("a photo " * 100, limit=_UNLIMITED)
    cut = tokenizer.encode("a photo " * 100, limit=77)
    assert len(whole.ids) == whole.count == cut.count > 77
    assert cut.ids.tolist() == [*whole.ids[:76], whole.ids[-1]]


def test_a_text_of_exactly_the_limit_is_left_alone(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("a photo of a cat", limit=_UNLIMITED)
    assert (
        tokenizer.encode("a photo of a cat", limit=whole.count).ids.tolist() == whole.ids.tolist()
    )


def test_truncation_and_padding_inside_the_file_are_ignored(
    small_merges: list[Merge], tmp_path: Path
) -> None:
    content = tokenizer_json(small_merges)
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    tokenizer = _loaded(tmp_path, content)
    assert tokenizer.encode("", limit=77).count == 2
    assert tokenizer.encode("a photo of a cat " * 3, limit=77).count > 4


@pytest.mark.parametrize("value", [None, b"bytes", 3, ["a", "list"], np.str_])
def test_a_value_that_is_not_a_text_is_refused(tokenizer: Tokenizer, value: Any) -> None:
    with pytest.raises(InvalidUserInput, match="a text is a str"):
        tokenizer.encode(value, limit=77)


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidUserInput, match="lone surrogate at 4"):
        tokenizer.encode("half\ud83d", limit=77)


def test_a_text_of_too_many_characters_is_refused_before_any_work(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a" * MAX_CHARACTERS, limit=77).count > 77
    with pytest.raises(TextTooLong, match="100001 characters"):
        tokenizer.encode("a" * (MAX_CHARACTERS + 1), limit=77)


@pytest.mark.parametrize(
    "text", ["cat " * 20_000, "a" * 90_000, " " * 60_000 + "cat", "🐈" * 9_000]
)
def test_only_the_beginning_of_a_long_text_is_tokenised(tokenizer: Tokenizer, text: str) -> None:
    whole = tokenizer.encode(text, limit=MAX_CHARACTERS)
    tokens = tokenizer.encode(text, limit=77)
    assert tokens.ids.tolist() == [*whole.ids[:76], whole.ids[-1]][: len(whole.ids)]
    assert (tokens.count > 77) == (whole.count > 77)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.json.*No such file"):
        Tokenizer.load(tmp_path / "nowhere.json")
    with pytest.raises(TokenizerError, match="directory"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b"\xff\xfe", b'{"model": 3}', b"[1]"])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        Tokenizer.load(path)


def test_a_file_cut_anywhere_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    whole = tokenizer_file.read_bytes()
    path = tmp_path / "tokenizer.json"
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(TokenizerError):
            Tokenizer.load(path)


def test_a_tokenizer_that_marks_no_end_is_refused(
    small_merges: list[Merge], tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match="0 special tokens"):
        _loaded(tmp_path, {**tokenizer_json(small_merges), "post_processor": None})


def test_another_files_hash_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(TokenizerError, match="another model's tokenizer"):
        Tokenizer.load(tokenizer_file, sha256="0" * 64)


def test_without_the_tokenizers_package_the_extra_is_named(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r'pip install "aioembed\[text\]"'):
        Tokenizer.load(tokenizer_file)


def _loaded(folder: Path, content: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.load(path)
