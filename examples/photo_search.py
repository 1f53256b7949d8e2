"""Search folders of photographs by picture or by words, in the terminal.

    pip install "aioembed[textual]" textual-image
    python examples/photo_search.py FOLDER [--index FILE] [--model MODEL] [--text-model MODEL]

Type the path of a picture, or a part of its name; Enter on a result searches for more like it. With
a text model of the same space, words find pictures instead of names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from PIL import Image, ImageOps
from rich.table import Column, Table
from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import DirectoryTree, Footer, Input, Label, OptionList, ProgressBar
from textual.widgets.option_list import Option
from textual_image.renderable import HalfcellImage
from textual_image.widget import Image as Preview

from aioembed import ImageEmbeddings, ModelState, TextEmbeddings
from aioembed.errors import AioembedError
from aioembed.index import EmbeddingIndex, Hit, SyncReport
from aioembed.integrations.textual import ModelMixin, ModelStatus

RESULTS = 24
THUMBNAIL = (10, 4)  # columns and lines; a line has two pixels
PREVIEW = (1000, 1000)  # pixels, for terminals that show images


def open_upright(path: str, size: tuple[int, int]) -> Image.Image | None:
    """Return a picture, upright by its EXIF and no larger than `size`; blocks."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * max(size), 2 * max(size)))  # JPEGs: decode no more than that
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            upright.thumbnail(size)
            return upright
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def draw_result(hit: Hit) -> Option:
    """Return a result with its thumbnail; blocks."""
    columns, lines = THUMBNAIL
    picture = open_upright(hit.key, (8 * columns, 16 * lines)) or Image.new("RGB", (1, 1), "gray")
    thumbnail = ImageOps.fit(picture, (columns, 2 * lines))
    row = Table.grid("", Column(overflow="fold"), padding=(0, 1))
    name = Text.assemble((Path(hit.key).name, "bold"), f"\n{hit.similarity:.3f}")
    row.add_row(HalfcellImage(thumbnail, columns, lines), name)
    return Option(row, id=hit.key)


class FolderTree(DirectoryTree):
    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


class ChooseFolder(ModalScreen[Path]):
    """Asks for a folder: Enter in the field takes its path, Enter in the tree fills it in."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Cancel")]

    def __init__(self, current: Path) -> None:
        super().__init__()
        self.current = current

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Input(str(self.current), placeholder="a folder", id="folder", compact=True)
            yield FolderTree(self.current.absolute().parent)
            yield Footer()

    @on(DirectoryTree.DirectorySelected)
    def fill_in(self, event: DirectoryTree.DirectorySelected) -> None:
        self.query_one(Input).value = str(event.path)

    @on(Input.Submitted)
    def take(self, event: Input.Submitted) -> None:
        self.dismiss(Path(event.value).expanduser())


class Results(OptionList):
    BINDINGS: ClassVar[list[BindingType]] = [
        ("enter", "select", "More like it"),
        ("c", "app.copy_path", "Copy path"),
    ]


class PhotoSearch(ModelMixin, App[None]):
    TITLE = "photo search"
    CSS = """
    Input { margin: 0 1; background: $surface; }
    #progress { height: 1; margin: 0 1; }
    #figures { width: 1fr; }
    ModelStatus { margin: 0 1; }
    #found { margin: 1 1 0 1; }
    Results { width: 2fr; height: 100%; border: none; }
    #shown { width: 3fr; margin-left: 1; }
    #path { width: 100%; }
    #preview { width: auto; height: auto; }
    ChooseFolder { align: center middle; }
    ChooseFolder > Vertical { width: 80%; height: 80%; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("ctrl+f", "focus('query')", "Search"),
        ("ctrl+o", "choose_folder", "Folder"),
    ]

    text_state: reactive[ModelState] = reactive(ModelState(), repaint=False)

    def __init__(
        self,
        folder: Path,
        index: EmbeddingIndex,
        model: ImageEmbeddings,
        text_model: TextEmbeddings | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.index = index
        self.model = model
        self.text_model = text_model
        self.report = SyncReport()
        self.figures = Label(id="figures", markup=False)
        self.bar = ProgressBar()

    def compose(self) -> ComposeResult:
        wanted = "words or a picture's path" if self.text_model else "a picture's path or name"
        yield Input(placeholder=f"search: {wanted}", id="query", compact=True)
        with Horizontal(id="progress"):
            yield self.figures
            yield self.bar
        yield ModelStatus(self.model)
        with Horizontal(id="found"):
            yield Results()
            with Vertical(id="shown"):
                yield Label(id="path", markup=False)
                yield Container(Preview(id="preview"))
        yield Footer()

    def on_mount(self) -> None:
        self.use_model(self.model)
        if self.text_model is not None:
            self.use_model(self.text_model, "text_state")
        self.set_interval(0.2, self.show_report)
        self.sync(self.folder)

    async def on_unmount(self) -> None:
        """Cancel the sync, and wait until it has committed, before the index is closed."""
        self.workers.cancel_all()
        await asyncio.gather(*(one.wait() for one in self.workers), return_exceptions=True)

    # --- the folder

    @work
    async def action_choose_folder(self) -> None:
        folder = await self.push_screen_wait(ChooseFolder(self.folder))
        if folder is not None:
            self.sync(folder)

    @work(exclusive=True, group="sync")
    async def sync(self, folder: Path) -> None:
        def follow(report: SyncReport) -> None:
            self.report = report

        self.folder, self.report = folder, SyncReport()
        try:
            report = await self.index.sync(folder, self.model, on_progress=follow)
        except AioembedError as error:
            self.complain(str(error))
        else:
            if report.failed:
                self.complain(f"{report.failed:,} pictures cannot be embedded")
            if report.missing:
                self.complain(f"{report.missing:,} pictures are missing: is a drive not mounted?")

    def show_report(self) -> None:
        report = self.report
        failed = f", {report.failed:,} failed" if report.failed else ""
        self.figures.update(f"{self.folder.name}: {report.done:,} of {report.total:,}{failed}")
        total = None if report.is_scanning else max(1, report.total)
        self.bar.update(total=total, progress=report.done)

    # --- the search

    @on(Input.Submitted, "#query")
    def submit(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.search(os.path.expanduser(event.value.strip()))  # noqa: PTH111  # may be words

    @on(Results.OptionSelected)
    def search_like(self, event: Results.OptionSelected) -> None:
        self.search(str(event.option_id))

    @work(exclusive=True, group="search")
    async def search(self, query: str) -> None:
        try:
            hits = await self.find(query)
        except AioembedError as error:
            self.complain(str(error))
            return
        options = [await asyncio.to_thread(draw_result, hit) for hit in hits]
        results = self.query_one(Results).set_options(options)
        if options:
            results.highlighted = 0
            results.focus()

    async def find(self, query: str) -> list[Hit]:
        """Search by a picture's path or URI, or by words; without a text model, by its name."""
        if query.startswith(("https:", "http:", "data:", "file:")):
            return await self.index.search_item(query, self.model, RESULTS)
        path = self.folder / query
        if (vector := await self.index.stored_vector(path)) is not None:
            return await self.index.search(vector, RESULTS)
        if await asyncio.to_thread(path.is_file):
            return await self.index.search_item(path, self.model, RESULTS)
        if self.text_model is not None:
            return await self.index.search_item(query, self.text_model, RESULTS)
        for key in await self.index.keys_below(self.folder):
            if query in os.path.basename(key):  # noqa: PTH119  # there may be very many
                vector = await self.index.get(key)
                return [] if vector is None else await self.index.search(vector, RESULTS)
        self.complain(f"no picture {query!r} in {self.folder}")
        return []

    @on(Results.OptionHighlighted)
    @work(exclusive=True, group="preview")
    async def show_preview(self, event: Results.OptionHighlighted) -> None:
        path = str(event.option_id)
        picture = await asyncio.to_thread(open_upright, path, PREVIEW)
        self.query_one("#preview", Preview).image = picture
        self.query_one("#path", Label).update(path if picture else f"{path}: not readable")

    def action_copy_path(self) -> None:
        option = self.query_one(Results).highlighted_option
        if option is not None:
            self.copy_to_clipboard(str(option.id))
            self.notify(f"copied {option.id}", markup=False)

    def complain(self, message: str) -> None:
        self.notify(message, severity="error", timeout=10, markup=False)


async def run(options: argparse.Namespace) -> None:
    model = ImageEmbeddings(options.model)
    text_model = TextEmbeddings(options.text_model) if options.text_model else None
    async with EmbeddingIndex(options.index) as index:
        await PhotoSearch(options.folder, index, model, text_model).run_async()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=Path, help="by default the index of `aioembed index`")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--text-model")
    try:
        asyncio.run(run(parser.parse_args()))
    except AioembedError as error:  # the index cannot be opened
        sys.exit(str(error))


if __name__ == "__main__":
    main()
