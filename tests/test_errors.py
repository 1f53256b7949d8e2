"""Errors cross processes: every class of the tree, with what it knows."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from typing import Any

import pytest

from aioembed import errors
from aioembed.errors import AioembedError

CAUSE = "the disk is on fire"
FILLINGS: dict[str, Any] = {
    "pending": 3,
    "rule": "ports",
    "index": 7,
    "error": errors.ImageTooLarge("nested"),
    "code": 20,
    "name": "OperatorMissing",
    "log": ("one line",),
    "advice": "reinstall",
    "package": "torch",
    "extra": "export",
    "remedy": "do something else",
}


def every_class() -> list[type[AioembedError]]:
    return [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, AioembedError)
    ]


def sample(kind: type[AioembedError]) -> AioembedError:
    """An error as the library raises it: with its attributes, a note and a chain of causes."""
    arguments = {
        name: FILLINGS[name]
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}
        and name in FILLINGS
    }
    takes_message = "package" not in arguments
    error = kind(*(["it went wrong"] if takes_message else []), **arguments)
    error.add_note("a note")
    error.__cause__ = OSError(CAUSE)
    return error


def raise_sample(name: str) -> None:
    raise sample(getattr(errors, name))


def check(found: BaseException, kind: type[AioembedError]) -> None:
    expected = sample(kind)
    assert type(found) is kind
    assert str(found) == str(expected)
    assert {name: str(value) for name, value in vars(found).items()} == {
        name: str(value) for name, value in vars(expected).items()
    }


def test_there_is_a_tree_to_walk() -> None:
    assert {errors.SourceRefused, errors.BatchItemFailed, errors.ForwardTimeout} <= set(
        every_class()
    )
    assert {kind.__name__ for kind in every_class()} <= set(errors.__all__)


@pytest.mark.parametrize("kind", every_class())
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_the_same_after_pickling(kind: type[AioembedError], protocol: int) -> None:
    found = pickle.loads(pickle.dumps(sample(kind), protocol))
    check(found, kind)
    assert CAUSE in str(found.__cause__)
    check(pickle.loads(pickle.dumps(found)), kind)
    check(copy.copy(sample(kind)), kind)


REASONS = {
    "LOAD_FAILED",
    "EXECUTION_FAILED",
    "SCHEMA_MISMATCH",
    "INVALID_ARGUMENT",
    "INVALID_STATE",
    "RESOURCE_DISPOSED",
    "RESOURCE_BUSY",
    "DOWNLOAD_FAILED",
    "DOWNLOAD_ABORTED",
    "UNKNOWN",
}
"""The codes of React Native ExecuTorch 0.10."""


def test_every_reason_is_one_of_the_hooks_and_each_is_used() -> None:
    assert {kind.reason for kind in every_class()} == REASONS


def test_an_item_lends_its_reason_to_its_batch() -> None:
    error = errors.BatchItemFailed("item 3", index=3, error=errors.FileReadFailed("no file"))
    assert (error.code, error.reason) == (114, "INVALID_ARGUMENT")


def test_causes_keep_their_order_and_own_errors_their_type() -> None:
    inner = sample(errors.ImageFetchFailed)
    outer = errors.BatchItemFailed("item 1", index=1, error=inner)
    outer.__cause__ = inner
    found = pickle.loads(pickle.dumps(outer))
    assert found.__cause__ is found.error
    assert isinstance(found.error, errors.ImageFetchFailed)
    assert CAUSE in str(found.error.__cause__)


def test_a_cause_that_cannot_be_pickled_is_kept_as_text() -> None:
    class Local(Exception):
        pass

    error = errors.DownloadFailed("no")
    error.__cause__ = Local("holds a socket")
    assert "Local: holds a socket" in str(pickle.loads(pickle.dumps(error)).__cause__)


def test_every_error_comes_back_from_a_process_pool() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for kind in every_class():
            with pytest.raises(AioembedError) as caught:
                pool.apply_async(raise_sample, (kind.__name__,)).get(timeout=60)
            check(caught.value, kind)
            assert CAUSE in str(caught.value.__cause__)
