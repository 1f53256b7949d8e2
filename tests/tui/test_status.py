"""`ModelStatus` and `ModelMixin` in an app that a pilot drives."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import anyio
import numpy as np
import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.reactive import reactive
from textual.widgets import Footer

from aioembed import GIST_512, ImageEmbeddings, ModelState, Status
from aioembed.errors import DownloadFailed
from aioembed.integrations.textual import ModelMixin, ModelStatus, StateChanged, status
from aioembed.testing import LoopbackServer, Reply, Request

from ..handle.conftest import Brake

pytestmark = pytest.mark.anyio

PIXELS = np.zeros((48, 64, 3), np.uint8)


class Shown(ModelMixin, App[None]):
    """An app that holds a model and shows it."""

    second: reactive[ModelState] = reactive(ModelState())
    CSS: ClassVar[str] = "Screen { align: left top; }"

    def __init__(self, model: ImageEmbeddings) -> None:
        super().__init__()
        self.model = model
        self.told: list[ModelState] = []

    def compose(self) -> ComposeResult:
        yield ModelStatus(self.model)
        yield Footer()

    def on_mount(self) -> None:
        self.use_model(self.model)

    def on_state_changed(self, event: StateChanged) -> None:
        self.told.append(event.state)

    @property
    def status(self) -> ModelStatus:
        return self.query_one(ModelStatus)


def lines(app: Shown) -> list[str]:
    return app.status.render().plain.splitlines()


async def shown(pilot: Pilot[None], app: Shown, line: int, *parts: str) -> None:
    """Wait for a line that has all the parts; what only counts on is drawn with the next frame."""
    with anyio.fail_after(60):
        while len(lines(app)) <= line or not all(part in lines(app)[line] for part in parts):
            await pilot.pause()


async def settle(pilot: Pilot[None], model: ImageEmbeddings, status: Status) -> None:
    with anyio.fail_after(60):
        await model.wait_for(status)
    await pilot.pause()


async def test_a_mounted_model_gets_ready_and_is_closed_with_the_app() -> None:
    model = ImageEmbeddings(GIST_512)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await settle(pilot, model, Status.READY)
        await model.forward(PIXELS)
        await pilot.pause()
        assert app.model_state is model.state
        await shown(pilot, app, 0, "● ready gist-512")
        await shown(pilot, app, 1, "0 in the queue", "1 done")
        assert app.status.has_class("-ready")
        assert not app.status.has_class("-idle")
    assert model.state.status is Status.CLOSED
    assert app.told[0].status is Status.IDLE
    assert Status.READY in {state.status for state in app.told}


async def test_a_download_is_shown_at_40_percent(program: bytes, tmp_path: Path) -> None:
    """The server falls silent after 40 % of the file."""
    silent = Reply(body=program, hang_after=round(0.4 * len(program)))
    async with LoopbackServer(lambda request: silent) as server:
        spec = GIST_512.model_copy(update={"source": f"{server.origin}/gist.pte"})
        model = ImageEmbeddings(spec, cache_dir=tmp_path)
        app = Shown(model)
        async with app.run_test(size=(40, 8)) as pilot:
            with anyio.fail_after(60):
                await model.wait_for(lambda state: state.download_progress >= 0.399)
            await shown(pilot, app, 1, " 40%")
            heading, bar, figures = lines(app)
            assert heading == "● downloading gist-512"
            assert bar.endswith(" 40%")
            assert figures.startswith("24.5 kB of 61.3 kB")
            assert max(map(len, lines(app))) <= 40

            app.status.focus()
            await pilot.press("p")
            await pilot.pause()
            assert model.state.is_paused
            assert lines(app)[2].endswith("paused")
    assert model.state.status is Status.CLOSED


async def test_a_failed_load_tells_why_and_r_tries_again(program: bytes, tmp_path: Path) -> None:
    replies = [Reply(404)]

    def answer(request: Request) -> Reply:
        return replies.pop() if replies else Reply(body=program)

    async with LoopbackServer(answer) as server:
        spec = GIST_512.model_copy(update={"source": f"{server.origin}/gist.pte"})
        model = ImageEmbeddings(spec, cache_dir=tmp_path)
        app = Shown(model)
        async with app.run_test(size=(40, 12)) as pilot:
            await settle(pilot, model, Status.FAILED)
            assert lines(app)[0] == "● failed gist-512"
            assert str(model.state.error) in lines(app)[1]
            assert lines(app)[-1] == "r tries again"
            assert app.status.size.height > 3, "a long error is wrapped"
            app.status.focus()
            await pilot.press("r")
            await settle(pilot, model, Status.READY)
            await shown(pilot, app, 0, "● ready gist-512")


async def test_inferences_and_the_queue_are_shown(inference: Brake) -> None:
    model = ImageEmbeddings(GIST_512)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await settle(pilot, model, Status.READY)
        inference.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(model.forward, PIXELS)
            await inference.wait_entered()
            with anyio.fail_after(60):
                await model.wait_for(lambda state: state.queue_depth == 3)
            await shown(pilot, app, 0, "● generating gist-512")
            await shown(pilot, app, 1, "3 in the queue")
            inference.release()
        await shown(pilot, app, 0, "● ready gist-512")


async def test_a_key_is_offered_only_where_it_does_something() -> None:
    model = ImageEmbeddings(GIST_512, prevent_load=True)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await pilot.pause()
        assert app.status.check_action("retry", ()) is True
        assert app.status.check_action("pause", ()) is False
        app.status.focus()
        await pilot.press("r")
        await settle(pilot, model, Status.READY)
        assert app.status.check_action("retry", ()) is False


async def test_a_second_model_has_an_attribute_of_its_own() -> None:
    model, other = ImageEmbeddings(GIST_512), ImageEmbeddings(GIST_512)

    class Two(Shown):
        def on_mount(self) -> None:
            self.use_model(other, "second")

    app = Two(model)
    async with app.run_test() as pilot:
        await settle(pilot, model, Status.READY)
        await settle(pilot, other, Status.READY)
        assert (app.model_state, app.second) == (model.state, other.state)
    assert {model.state.status, other.state.status} == {Status.CLOSED}


async def test_changes_that_fall_together_are_told_once() -> None:
    model = ImageEmbeddings(GIST_512)
    app = Shown(model)
    async with app.run_test() as pilot:
        await settle(pilot, model, Status.READY)
        before = len(app.told)
        for depth in range(1, 50):
            model._lifecycle.update(queue_depth=depth)
        model._lifecycle.update(queue_depth=0)
        await pilot.pause()
        assert [state.queue_depth for state in app.told[before:]] == [0]


async def test_a_busy_model_does_not_flicker_between_two_images(
    inference: Brake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two inferences it is ready for a moment; the widget shows that it works."""
    monkeypatch.setattr(status, "_FRAME_SECONDS", 3600)  # frames come when they are asked for
    model = ImageEmbeddings(GIST_512)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await settle(pilot, model, Status.READY)
        inference.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, PIXELS)
            await inference.wait_entered()
            app.status._catch_up()
            assert lines(app)[0] == "● generating gist-512"
            inference.release()
        assert model.state.status is Status.READY
        app.status._catch_up()
        assert app.status.has_class("-generating"), "it has worked since the last frame"
        app.status._catch_up()
        assert app.status.has_class("-ready")


@pytest.mark.parametrize(("least", "fit"), [(3, [True, True, False]), (1, [True, False, False])])
async def test_the_screen_is_laid_out_anew_only_where_another_height_is_wanted(
    least: int, fit: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line while loading, two when ready, more after a failure."""
    found: list[bool] = []
    fits = ModelStatus._fits

    def note(status: ModelStatus) -> bool:
        found.append(fits(status))
        return found[-1]

    monkeypatch.setattr(ModelStatus, "_catch_up", lambda _self: None)  # no model is followed
    monkeypatch.setattr(ModelStatus, "_fits", note)
    app = Shown(ImageEmbeddings(GIST_512, prevent_load=True))
    error = DownloadFailed("a long reason " * 20)
    async with app.run_test(size=(40, 20)) as pilot:
        app.status.styles.min_height = least
        await pilot.pause()
        for of, reason in ((Status.LOADING, None), (Status.READY, None), (Status.FAILED, error)):
            app.status.state = ModelState(status=of, error=reason)
            await pilot.pause()
            wrapped = app.status.render().wrap(app.console, app.status.content_size.width)
            assert app.status.size.height == max(least, len(wrapped))
    assert found == fit
