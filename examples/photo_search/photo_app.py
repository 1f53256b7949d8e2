"""The app: a folder and its index on one side, the search and its results on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

from anyio import to_thread
from indexing import IndexingFailed, index_folder
from keys import Keys
from progress import Progress
from quiet import Pane, QuietInput, QuietScreen
from rendering import draw_result
from responsive import responsive
from results import Results
from rich.cells import cell_len
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.reactive import reactive
from textual.strip import Strip
from textual.widgets import Input, Static
from thumbnails import Thumbnails

from aioembed import ImageEmbeddings, ModelState, TextEmbeddings
from aioembed.errors import AioembedError
from aioembed.index import EmbeddingIndex, Hit, SyncReport
from aioembed.integrations.textual import ModelMixin, ModelStatus

RESULTS = 24
PAUSE = 0.001


def path_of(text: str) -> Path:
    return Path(text).expanduser()


class PhotoSearch(ModelMixin, App[None]):
    TITLE = "photo search"
    AUTO_FOCUS = "#query"
    CSS_PATH = "photo_app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (80, "-wide")]  # noqa: RUF012  # as Textual declares it
    BINDINGS: ClassVar[list[BindingType]] = [
        ("ctrl+f", "focus_search", "Search"),
        ("ctrl+q", "quit", "Quit"),
    ]

    text_state: reactive[ModelState] = reactive(ModelState(), repaint=False)

    def __init__(
        self,
        folder: Path,
        index_file: Path,
        *,
        model: str = "efficientnet-lite0",
        text_model: str | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.index = EmbeddingIndex(index_file)
        self.model_source = model
        self.model = ImageEmbeddings(model)
        self.text_model = TextEmbeddings(text_model) if text_model else None
        self.report = SyncReport()
        self.hits: Sequence[Hit] = ()
        self.thumbnails = Thumbnails()
        self.syncing: asyncio.Task[None] | None = None
        self.resources = AsyncExitStack()

    def get_default_screen(self) -> QuietScreen:
        return QuietScreen(id="_default")

    def compose(self) -> ComposeResult:
        with Pane(id="panes"):
            with Pane(id="folder-pane"):
                with Pane(id="indexing"):
                    yield QuietInput(str(self.folder), placeholder="a folder", id="folder")
                    yield Pane(Progress(id="progress"))
                yield Pane(ModelStatus(self.model), id="model")
            with Pane(id="search-pane"):
                wanted = "a picture or words" if self.text_model else "a picture's name or path"
                with Pane(id="asking"):
                    yield QuietInput(placeholder=f"search: {wanted}", id="query")
                yield Pane(Static("", id="told"), id="telling")
                yield Pane(Results(id="results"), id="found")
        yield Pane(Keys(), id="keys")

    async def on_mount(self) -> None:
        self.use_model(self.model)
        if self.text_model is not None:
            self.use_model(self.text_model, "text_state")
        self.resources.enter_context(responsive())
        self.resources.push_async_callback(self.thumbnails.aclose)
        try:
            await self.resources.enter_async_context(self.index)
        except AioembedError as error:
            self.tell(str(error), is_error=True)
            return
        self.follow(self.folder)

    async def on_unmount(self) -> None:
        await self.stop_following()
        await self.resources.aclose()

    # --- the folder

    def follow(self, folder: Path) -> None:
        self.syncing = asyncio.create_task(self.sync(folder))

    async def stop_following(self) -> None:
        if self.syncing is not None:
            self.syncing.cancel()
            await asyncio.wait([self.syncing])

    async def sync(self, folder: Path) -> None:
        self.show_report(SyncReport())
        try:
            await self.model.load()
            await index_folder(folder, self.index.path, self.model_source, self.show_report)
        except (AioembedError, IndexingFailed) as error:
            self.tell(str(error), is_error=True)

    def show_report(self, report: SyncReport) -> None:
        self.report = report
        if self.is_running:  # else it is being left, and its widgets are gone
            self.query_one(Progress).report = report

    @on(Input.Submitted, "#folder")
    async def choose_folder(self, event: Input.Submitted) -> None:
        await self.stop_following()
        self.folder = path_of(event.value)
        self.follow(self.folder)

    # --- the search

    @on(Input.Submitted, "#query")
    def submit(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.search(event.value.strip())

    @on(Results.Chosen)
    def search_like(self, event: Results.Chosen) -> None:
        self.search(self.hits[event.number].key)

    @work(exclusive=True, group="search")
    async def search(self, query: str) -> None:
        try:
            picture = await self.find_picture(query)
            if picture is not None:
                hits = await self.like(picture)
            elif self.text_model is not None:
                hits = await self.index.search_item(query, self.text_model, RESULTS)
            else:
                self.tell(f"no picture {query!r} here", is_error=True)
                return
        except AioembedError as error:
            self.tell(str(error), is_error=True)
            return
        await self.show_hits(hits)
        self.tell(f"{len(hits)} nearest to {Path(query).name}")

    async def like(self, picture: str | Path) -> Sequence[Hit]:
        """Return what is nearest to a picture; an indexed one has a vector already."""
        vector = await self.index.get(str(picture))
        if vector is not None:
            return await self.index.search(vector, RESULTS)
        return await self.index.search_item(picture, self.model, RESULTS)

    async def find_picture(self, query: str) -> str | Path | None:
        """Return the picture that a URI, a path, or the name of an indexed one stands for."""
        if query.startswith(("https:", "http:", "file:", "data:")):
            return query
        for path in (path_of(query), self.folder / query):
            if await to_thread.run_sync(path.is_file):
                return Path.cwd() / path
        for key in await self.index.keys():
            if Path(key).stem == query:
                return Path(key)
        return None

    async def show_hits(self, hits: Sequence[Hit]) -> None:
        results = self.query_one(Results)
        thumbnails = await self.thumbnails.get([hit.key for hit in hits])
        lines: list[Strip] = []
        canvas = results.canvas
        for hit, pixels in zip(hits, thumbnails, strict=True):
            for line in draw_result(hit, pixels, canvas):
                lines.append(line)
                await asyncio.sleep(PAUSE)  # for keys
        self.hits = hits
        results.show(lines)

    def tell(self, words: str, *, is_error: bool = False) -> None:
        told = self.query_one("#told", Static)
        told.set_class(is_error, "-error")
        told.update(words, layout=told.size.height > 1 or cell_len(words) > told.size.width)

    def action_focus_search(self) -> None:
        self.query_one("#query").focus()
