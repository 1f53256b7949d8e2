"""The lifecycle: every legal move is made, any other is refused."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from aioembed.errors import IllegalStateMove
from aioembed.state import LEGAL_MOVES, Lifecycle, ModelState, Status

ALL_MOVES = list(itertools.product(Status, Status))
EXPECTED = {
    "idle": "downloading loading failed closed",
    "downloading": "loading idle failed closed",
    "loading": "ready idle failed closed",
    "ready": "idle generating failed closed",
    "generating": "ready failed closed",
    "failed": "idle downloading loading closed",
    "closed": "idle",
}


def at(status: Status) -> Lifecycle:
    """Walk a fresh lifecycle to `status` by legal moves."""
    lifecycle = Lifecycle()
    paths = {
        Status.IDLE: "",
        Status.DOWNLOADING: "downloading",
        Status.LOADING: "downloading loading",
        Status.READY: "loading ready",
        Status.GENERATING: "loading ready generating",
        Status.FAILED: "failed",
        Status.CLOSED: "closed",
    }
    for step in paths[status].split():
        lifecycle.move(Status(step))
    return lifecycle


def test_the_table_is_the_documented_one() -> None:
    assert {str(k): v for k, v in LEGAL_MOVES.items()} == {
        k: {Status(word) for word in v.split()} for k, v in EXPECTED.items()
    }


@pytest.mark.parametrize(("start", "end"), ALL_MOVES, ids=str)
def test_a_move_is_made_if_and_only_if_the_table_has_it(start: Status, end: Status) -> None:
    lifecycle = at(start)
    seen: list[Status] = []
    lifecycle.subscribe(lambda: seen.append(lifecycle.status))
    before = lifecycle.value
    if end in LEGAL_MOVES[start]:
        lifecycle.move(end)
        assert lifecycle.status is end
        assert seen == [end]
    else:
        with pytest.raises(IllegalStateMove, match=f"from {start} to {end}"):
            lifecycle.move(end)
        assert lifecycle.value is before
        assert seen == []


@pytest.mark.parametrize("status", Status)
def test_ready_and_generating_follow_from_the_status(status: Status) -> None:
    state = ModelState(status=status)
    assert state.is_ready is (status in {Status.READY, Status.GENERATING})
    assert state.is_generating is (status is Status.GENERATING)


def test_a_snapshot_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelState().status = Status.READY


def test_an_update_that_changes_nothing_publishes_nothing() -> None:
    lifecycle = Lifecycle()
    calls: list[int] = []
    lifecycle.subscribe(lambda: calls.append(1))
    before = lifecycle.value
    lifecycle.update(queue_depth=0)
    assert lifecycle.value is before
    assert calls == []
    lifecycle.update(queue_depth=2)
    assert lifecycle.value.queue_depth == 2
    assert calls == [1]
