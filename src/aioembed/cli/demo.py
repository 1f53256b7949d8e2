"""`aioembed demo`: a model's life as it happens, and what its vectors can tell apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import anyio
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from rich.text import Text

from aioembed import ImageEmbeddings, Status, cosine_similarity
from aioembed.testing.scenes import draw_scenes, near_duplicates

from .common import (
    DEFAULT_MODEL,
    DebugOption,
    ModelOption,
    ThreadsOption,
    guarded,
    render_table,
    unwritable,
    write_result,
)
from .embed import NamedImage, embed_all

__all__ = ["StateLog", "demo"]


class StateLog:
    """Prints a model's state now, and then every change of its status.

    Args:
        model: The handle to follow until it is closed.
        clock: Returns seconds.

    Attributes:
        subject: What is being embedded, printed behind the states of that.
    """

    def __init__(
        self, model: ImageEmbeddings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.subject = ""
        self._model = model
        self._clock = clock
        self._began = clock()
        self._status = model.state.status
        self._generating_since = self._began
        self._changes: int | None = None
        model.subscribe(self._changed)
        self._print(self._status)

    @contextmanager
    def together(self, subject: str) -> Iterator[None]:
        """Count the changes in the body instead of printing them, then print one line."""
        began = self._clock()
        self._changes = 0
        yield
        seconds, changes, self._changes = self._clock() - began, self._changes, None
        self._print(f"{subject}: {changes} changes of state in {seconds * 1000:.0f} ms")

    def _changed(self) -> None:
        before, self._status = self._status, self._model.state.status
        if self._status is before:
            return
        if self._changes is not None:
            self._changes += 1
        elif self._status is Status.GENERATING:
            self._print(f"{self._status} -> ", end=False)
            self._generating_since = self._clock()
        elif before is Status.GENERATING:
            milliseconds = (self._clock() - self._generating_since) * 1000
            typer.echo(f"{self._status} after {milliseconds:4.1f} ms  {self.subject}", err=True)
        else:
            self._print(self._status)

    def _print(self, what: str, *, end: bool = True) -> None:
        milliseconds = (self._clock() - self._began) * 1000
        typer.echo(f"{milliseconds:7.1f} ms  {what}", err=True, nl=end)


_SHOWN_CHANGES = ("jpeg", "cropped", "grey")


class _Picture(NamedTuple):
    """A drawn scene, or what became of one by a change."""

    scene: str
    change: str
    image: Image.Image

    @property
    def name(self) -> str:
        return f"{self.scene}-{self.change}" if self.change else self.scene


class _Embedded(NamedTuple):
    """The vectors of the demo: `(scenes, dim)` and `(duplicates, dim)`."""

    scenes: NDArray[np.float32]
    duplicates: NDArray[np.float32]


def demo(
    *,
    model: ModelOption = DEFAULT_MODEL,
    threads: ThreadsOption = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the drawn pictures there.", show_default=False),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show a model's states, and which pictures its vectors find.

    Draws six scenes and eight near-duplicates of each, embeds them, and tells how many are nearest
    to their own scene. Needs no network with the default model.
    """
    with guarded(debug):
        handle = ImageEmbeddings(model, threads=threads)
        scenes = [_Picture(name, "", image) for name, image in draw_scenes().items()]
        changed = [
            _Picture(scene.name, change, image)
            for scene in scenes
            for change, image in near_duplicates(scene.image).items()
        ]
        if save is not None:
            _keep([*scenes, *changed], save)
        embedded = anyio.run(partial(_embed, handle, scenes, changed))
        similarities = np.asarray(cosine_similarity(embedded.duplicates, embedded.scenes))
        table = _table(scenes, changed, similarities)
        write_result(b"\n" + render_table(table) + _verdict(scenes, changed, similarities), None)


async def _embed(
    model: ImageEmbeddings, scenes: Sequence[_Picture], changed: Sequence[_Picture]
) -> _Embedded:
    """Embed the scenes one after the other, then all the near-duplicates together."""
    log = StateLog(model)
    async with model:
        await model.load()
        vectors = []
        for scene in scenes:
            log.subject = scene.name
            vectors.append(await model.forward(scene.image))
        with log.together(f"{len(changed)} near-duplicates together"):
            images = [NamedImage(picture.name, picture.image) for picture in changed]
            outcomes = await embed_all(model, images)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    duplicates = [outcome.embedding for outcome in outcomes if outcome.embedding is not None]
    return _Embedded(np.stack(vectors), np.stack(duplicates))


def _table(
    scenes: Sequence[_Picture], changed: Sequence[_Picture], similarities: NDArray[np.floating]
) -> Table:
    """Similarities of some near-duplicates to every scene, the nearest scene in bold."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("cosine similarity", no_wrap=True)
    for scene in scenes:
        table.add_column(scene.name, justify="right", no_wrap=True)
    for picture, row in zip(changed, similarities, strict=True):
        if picture.change in _SHOWN_CHANGES:
            nearest = int(np.argmax(row))
            cells = [
                Text(f"{value:.2f}", style="bold green" if index == nearest else "")
                for index, value in enumerate(row)
            ]
            table.add_row(picture.name, *cells)
    return table


def _verdict(
    scenes: Sequence[_Picture], changed: Sequence[_Picture], similarities: NDArray[np.floating]
) -> bytes:
    names = np.array([scene.name for scene in scenes])
    own = np.array([[picture.scene] for picture in changed]) == names
    found = int(np.sum(own[np.arange(len(changed)), np.argmax(similarities, axis=1)]))
    text = (
        f"{found} of {len(changed)} near-duplicates are nearest to the scene they were made from.\n"
        f"Lowest similarity to their own scene {similarities[own].min():.2f}, "
        f"highest to another {similarities[~own].max():.2f}.\n"
    )
    return f"\n{text}".encode()


def _keep(pictures: Sequence[_Picture], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            picture.image.save(folder / f"{picture.name}.png")
    except OSError as exc:
        raise unwritable(folder, exc.strerror or str(exc)) from exc
