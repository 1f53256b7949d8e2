"""`ModelStatus` and `ModelMixin` in an app that a pilot drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import numpy as np
import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.reactive import reactive
from textual.theme import BUILTIN_THEMES
from textual.widgets import Footer, Label

from aioembed import ImageEmbeddings, ModelState, Statistics, Status
from aioembed.errors import DownloadFailed, InvalidConfig
from aioembed.integrations.textual import ModelMixin, ModelStatus, StateChanged
from aioembed.testing._loopback import LoopbackServer, Reply, Request

from ..handle.conftest import Brake
from ..programs import TINY_IMAGE

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
    model = ImageEmbeddings(TINY_IMAGE)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await settle(pilot, model, Status.READY)
        await model.forward(PIXELS)
        await pilot.pause()
        assert app.model_state is model.state
        await shown(pilot, app, 0, "● ready tiny-image")
        await shown(pilot, app, 1, "0 queued", "1 done")
        assert app.status.has_class("-ready")
        assert not app.status.has_class("-idle")
    assert model.state.status is Status.CLOSED
    assert app.told[0].status is Status.IDLE
    assert Status.READY in {state.status for state in app.told}


async def test_a_download_is_shown_at_40_percent(program: bytes, tmp_path: Path) -> None:
    """The server falls silent after 40 % of the file."""
    silent = Reply(body=program, hang_after=round(0.4 * len(program)))
    async with LoopbackServer(lambda request: silent) as server:
        spec = TINY_IMAGE.model_copy(update={"source": f"{server.origin}/model.pte"})
        model = ImageEmbeddings(spec, cache_dir=tmp_path)
        app = Shown(model)
        async with app.run_test(size=(40, 8)) as pilot:
            with anyio.fail_after(60):
                await model.wait_for(lambda state: state.download_progress >= 0.399)
            await shown(pilot, app, 1, " 40%")
            heading, bar, figures = lines(app)
            assert heading == "● downloading tiny-image"
            assert bar.endswith(" 40%")
            assert figures.startswith("11.7 kB of 29.3 kB")
            assert max(map(len, lines(app))) <= 40

            app.status.focus()
            await pilot.press("p")
            await shown(pilot, app, 2, "paused")
            assert model.state.is_paused
    assert model.state.status is Status.CLOSED


async def test_a_failed_load_shows_why_and_r_tries_again(program: bytes, tmp_path: Path) -> None:
    replies = [Reply(404)]

    def answer(request: Request) -> Reply:
        return replies.pop() if replies else Reply(body=program)

    async with LoopbackServer(answer) as server:
        spec = TINY_IMAGE.model_copy(update={"source": f"{server.origin}/model.pte"})
        model = ImageEmbeddings(spec, cache_dir=tmp_path)
        app = Shown(model)
        async with app.run_test(size=(40, 12)) as pilot:
            await settle(pilot, model, Status.FAILED)
            assert lines(app)[0] == "● failed tiny-image"
            assert str(model.state.error) in lines(app)[1]
            app.set_focus(None)
            await pilot.pause()
            assert "r tries again" not in lines(app), "the key has no effect without the focus"
            assert app.status.size.height > 3, "a long error is wrapped"
            app.status.focus()
            await pilot.pause()
            assert lines(app)[-1] == "r tries again"
            await pilot.press("r")
            await settle(pilot, model, Status.READY)
            await shown(pilot, app, 0, "● ready tiny-image")


async def test_inferences_and_the_queue_are_shown(inference: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
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
            await shown(pilot, app, 0, "● generating tiny-image")
            await shown(pilot, app, 1, "3 queued")
            inference.release()
        await shown(pilot, app, 0, "● ready tiny-image")


async def test_a_key_is_offered_only_where_it_does_something() -> None:
    model = ImageEmbeddings(TINY_IMAGE, prevent_load=True)
    app = Shown(model)
    async with app.run_test(size=(40, 8)) as pilot:
        await pilot.pause()
        assert app.status.check_action("retry", ()) is True
        assert app.status.check_action("pause", ()) is False
        app.status.focus()
        await pilot.press("r")
        await settle(pilot, model, Status.READY)
        assert app.status.check_action("retry", ()) is False


async def test_a_second_model_has_its_own_attribute() -> None:
    model, other = ImageEmbeddings(TINY_IMAGE), ImageEmbeddings(TINY_IMAGE)

    class Two(Shown):
        def on_mount(self) -> None:
            self.use_model(other, "second")

    app = Two(model)
    async with app.run_test() as pilot:
        await settle(pilot, model, Status.READY)
        await settle(pilot, other, Status.READY)
        assert (app.model_state, app.second) == (model.state, other.state)
    assert {model.state.status, other.state.status} == {Status.CLOSED}


async def test_changes_within_a_turn_are_posted_once() -> None:
    model = Scripted()

    class Bound(ModelMixin, App[None]):
        def on_mount(self) -> None:
            self.told: list[ModelState] = []
            self.bind_model(model)  # type: ignore[arg-type]

        def on_state_changed(self, event: StateChanged) -> None:
            self.told.append(event.state)

    app = Bound()
    async with app.run_test() as pilot:
        await pilot.pause()
        before = len(app.told)
        for depth in (*range(1, 50), 0):
            model.show(ModelState(status=Status.READY, queue_depth=depth))
        await pilot.pause()
        assert [state.queue_depth for state in app.told[before:]] == [0]


class Scripted:
    """What `ModelStatus` needs of a handle, with a state and statistics that the test sets."""

    def __init__(self, state: ModelState | None = None, name: str = "a-model") -> None:
        self.spec = TINY_IMAGE.model_copy(update={"name": name})
        self.state = state or ModelState()
        self.is_busy = False
        self.frames = 0
        self._statistics = ImageEmbeddings(TINY_IMAGE).statistics()
        self._callbacks: list[Callable[[], object]] = []

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def show(self, state: ModelState) -> None:
        self.state = state
        for callback in self._callbacks:
            callback()

    def statistics(self) -> Statistics:
        """Read by the widget once a frame; a busy model has done more each time."""
        self.frames += 1
        done = self._statistics.succeeded + self.is_busy
        self._statistics = replace(self._statistics, succeeded=done)
        return self._statistics


class Scenes(App[None]):
    """Shows a scripted model."""

    CSS: ClassVar[str] = "Screen { align: left top; }"

    def __init__(self, model: Scripted) -> None:
        super().__init__()
        self.model = model

    def compose(self) -> ComposeResult:
        yield ModelStatus(self.model)  # type: ignore[arg-type]

    @property
    def status(self) -> ModelStatus:
        return self.query_one(ModelStatus)


async def after_frames(pilot: Pilot[None], model: Scripted, count: int) -> None:
    until = model.frames + count
    with anyio.fail_after(60):
        while model.frames < until:
            await pilot.pause(0.01)


async def test_a_busy_model_does_not_flicker_between_two_images() -> None:
    """Between two inferences it is ready for a moment; the widget shows that it works."""
    model = Scripted(ModelState(status=Status.GENERATING))
    app = Scenes(model)
    async with app.run_test(size=(40, 8)) as pilot:
        model.is_busy = True
        model.show(ModelState(status=Status.READY))
        await after_frames(pilot, model, 3)
        assert app.status.has_class("-generating")
        model.is_busy = False
        await after_frames(pilot, model, 2)
        assert app.status.has_class("-ready")


FAILED = ModelState(status=Status.FAILED, error=DownloadFailed("the server answered 404 " * 5))
DOWNLOADING = ModelState(
    status=Status.DOWNLOADING,
    download_progress=0.42,
    downloaded_bytes=147_600_000,
    total_bytes=351_606_400,
    download_rate=112_500_000,
    download_eta=3700,
)
STATES = [
    ModelState(),
    ModelState(is_asleep=True),
    DOWNLOADING,
    DOWNLOADING.model_copy(update={"is_paused": True}),
    ModelState(status=Status.LOADING, download_progress=1),
    ModelState(status=Status.LOADING, download_progress=1, is_waking=True),
    ModelState(status=Status.READY, download_progress=1),
    ModelState(status=Status.GENERATING, download_progress=1, queue_depth=1_000_000),
    FAILED,
    ModelState(status=Status.CLOSED),
]


@pytest.mark.parametrize("width", [40, 80, 120])
async def test_every_state_fits_and_takes_the_height_it_needs(width: int) -> None:
    model = Scripted(name="a-model-with-a-name-that-is-longer-than-forty-columns-are-wide" * 2)
    app = Scenes(model)
    async with app.run_test(size=(width, 20)) as pilot:
        for state in STATES:
            model.show(state)
            await after_frames(pilot, model, 2)
            size = app.status.content_size
            lines = app.status.render().plain.splitlines()
            name = {(True, False): "asleep", (False, True): "waking"}.get(
                (state.is_asleep, state.is_waking), state.status
            )
            assert lines[0].startswith(f"● {name} a-model")
            assert app.status.has_class(f"-{state.status}")
            if state is FAILED:
                assert size.height > len(str(state.error)) // size.width
            else:
                assert max(map(len, lines)) <= size.width
                assert size.height >= len(lines)


READABLE = [name for name in BUILTIN_THEMES if "ansi" not in name]  # those are the terminal's


@pytest.mark.parametrize("theme", READABLE)
async def test_the_text_is_readable_in_every_theme(theme: str) -> None:
    """WCAG 2.2's minimum for text is a contrast of 4.5, with and without the focus."""
    model = Scripted()
    app = Scenes(model)
    app.theme = theme
    async with app.run_test(size=(40, 14)) as pilot:
        for state in (ModelState(), DOWNLOADING, ModelState(status=Status.READY), FAILED):
            for focused in (None, app.status):
                app.set_focus(focused)
                model.show(state)
                await pilot.pause()
                for line in range(app.status.size.height):
                    for segment in app.status.render_line(line):
                        if segment.text.strip(" ━▌▎│┃█▊"):
                            assert contrast(segment.style) >= 4.5, segment


def contrast(style: Any) -> float:
    """The contrast ratio of a style's text to its background, by WCAG 2.2."""

    def luminance(color: Any) -> float:
        channels = [part / 255 for part in color.get_truecolor()]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(style.color), luminance(style.bgcolor)))
    return (light + 0.05) / (dark + 0.05)


async def test_watchers_and_handlers_are_not_called_once_the_widgets_are_gone() -> None:
    class Watching(ModelMixin, App[None]):
        def compose(self) -> ComposeResult:
            yield Label("none", id="label")

        def on_mount(self) -> None:
            self.use_model(ImageEmbeddings(TINY_IMAGE))

        def watch_model_state(self, state: ModelState) -> None:
            self.query_one("#label", Label).update(state.status)

        def on_state_changed(self, event: StateChanged) -> None:
            self.query_one("#label", Label).update(event.state.status)

    app = Watching()
    async with app.run_test() as pilot:
        with anyio.fail_after(60):
            while app.model_state.status is not Status.READY:
                await pilot.pause(0.01)


async def test_a_model_that_is_closed_elsewhere_is_shown_closed() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        app = Scenes(model)  # type: ignore[arg-type]
        async with app.run_test() as pilot:
            await model.aclose()
            await pilot.pause()
            assert app.status.render().plain.startswith("● closed")


@pytest.mark.parametrize("model", [None, "a-model", TINY_IMAGE])
def test_a_widget_without_a_model_is_refused(model: Any) -> None:
    with pytest.raises(InvalidConfig, match="ModelStatus shows a handle"):
        ModelStatus(model)


async def test_the_mixin_leaves_the_default_styles_of_an_app() -> None:
    class Labelled(ModelMixin, App[None]):
        def compose(self) -> ComposeResult:
            yield Label("readable")

    for theme in ("textual-dark", "textual-light"):
        app = Labelled()
        async with app.run_test() as pilot:
            app.theme = theme
            await pilot.pause()
            *_, background, foreground = app.query_one(Label).colors
            assert abs(background.brightness - foreground.brightness) > 0.5
