"""`aioembed demo`: a model's states as they change, and what its vectors find."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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

from aioembed import Err, ImageEmbeddings, Ok, Status, cosine_similarity
from aioembed.errors import AioembedError
from aioembed.images import load_image
from aioembed.testing.photographs import near_duplicates, photograph_files

from . import ExitCode
from .common import (
    DEFAULT_MODEL,
    DebugOption,
    ModelOption,
    PreprocessingOption,
    ThreadsOption,
    base_names,
    complete_paths,
    guarded,
    image_policy,
    render_table,
    report_error,
    shorten_middle,
    unwritable,
    usage_error,
    warn,
    write_result,
)
from .embed import NamedImage, embed_all, named_images

__all__ = ["demo"]


class StateLog:
    """Prints a model's state now, and then every change of its status.

    Args:
        model: The handle to follow until it is closed.

    Attributes:
        subject: What is being embedded, printed behind the states of that.
    """

    def __init__(self, model: ImageEmbeddings) -> None:
        self.subject = ""
        self._model = model
        self._began = time.perf_counter()
        self._status = model.state.status
        self._generating_since = self._began
        self._changes: int | None = None
        model.subscribe(self._changed)
        self._print(self._status)

    @contextmanager
    def together(self, subject: str) -> Iterator[None]:
        """Count the changes in the body instead of printing them, then print one line."""
        began = time.perf_counter()
        self._changes = 0
        yield
        milliseconds = (time.perf_counter() - began) * 1000
        changes, self._changes = self._changes, None
        self._print(f"{subject}: {changes} changes of state in {milliseconds:.0f} ms")

    def _changed(self) -> None:
        before, self._status = self._status, self._model.state.status
        if self._status is before:
            return
        if self._changes is not None:
            self._changes += 1
        elif self._status is Status.GENERATING:
            self._print(f"{self._status} -> ", end=False)
            self._generating_since = time.perf_counter()
        elif before is Status.GENERATING:
            milliseconds = (time.perf_counter() - self._generating_since) * 1000
            typer.echo(f"{self._status} after {milliseconds:4.1f} ms  {self.subject}", err=True)
        else:
            self._print(self._status)

    def _print(self, what: str, *, end: bool = True) -> None:
        milliseconds = (time.perf_counter() - self._began) * 1000
        typer.echo(f"{milliseconds:7.1f} ms  {what}", err=True, nl=end)


_MOST_PICTURES = 32
_LONGEST_SIDE = 640
_NAME_WIDTH = 32


class _Picture(NamedTuple):
    """A picture of the demo, RGB."""

    name: str
    image: Image.Image


class _Embedded(NamedTuple):
    """The vectors: `(pictures, dim)`, and of their near-duplicates `(pictures, changes, dim)`."""

    pictures: NDArray[np.float32]
    duplicates: NDArray[np.float32]


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Of pictures of your own, in place of those that ship; the first 32 are taken.",
            show_default=False,
            autocompletion=complete_paths,
        ),
    ] = None,
    *,
    model: ModelOption = DEFAULT_MODEL,
    preprocessing: PreprocessingOption = None,
    threads: ThreadsOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the pictures and their near-duplicates there.",
            show_default=False,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show a model's states, and which pictures its vectors find.

    Embeds eight photographs, or those of a folder, and eight near-duplicates of each; says which
    other picture is most similar to each one, and how many near-duplicates find their own. Needs
    no network with the default model.
    """
    with guarded(debug):
        handle = ImageEmbeddings(model, preprocessing=preprocessing, threads=threads)
        wanted, left_out = _wanted(folder)
        pictures, failures = anyio.run(_opened, wanted)
        for name, error in failures:
            report_error(error, name=name, debug=debug)
        if len(pictures) < 2:  # noqa: PLR2004  # a similarity is of two
            raise usage_error(f"{folder} needs at least two pictures that can be read")
        changed = [near_duplicates(picture.image) for picture in pictures]
        if save is not None:
            _keep(pictures, changed, save)
        embedded = anyio.run(partial(_embed, handle, pictures, changed))
        if left_out:
            warn(f"took the first {len(wanted)} pictures, and left {left_out} out")
        write_result(
            _result([picture.name for picture in pictures], list(changed[0]), embedded), None
        )
        if failures:
            raise typer.Exit(ExitCode.INPUT)


def _wanted(folder: Path | None) -> tuple[list[NamedImage], int]:
    """Return which pictures to show, and how many are left out."""
    if folder is None:
        return [NamedImage(name, file) for name, file in photograph_files().items()], 0
    if not folder.is_dir():
        raise usage_error(f"{folder} is not a folder")
    found = named_images([str(folder)])
    names = base_names([one.name for one in found])
    named = [NamedImage(name, one.image) for name, one in zip(names, found, strict=True)]
    return named[:_MOST_PICTURES], len(named[_MOST_PICTURES:])


async def _opened(
    wanted: Sequence[NamedImage],
) -> tuple[list[_Picture], list[tuple[str, AioembedError]]]:
    """Return the pictures at no more than 640 pixels a side, and what could not be read."""
    pictures: list[_Picture] = []
    failures: list[tuple[str, AioembedError]] = []
    for one in wanted:
        try:
            image = Image.fromarray(await load_image(one.image, policy=image_policy()))
        except AioembedError as error:
            failures.append((one.name, error))
        else:
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            pictures.append(_Picture(one.name, image))
    return pictures, failures


async def _embed(
    model: ImageEmbeddings,
    pictures: Sequence[_Picture],
    changed: Sequence[dict[str, Image.Image]],
) -> _Embedded:
    """Embed the pictures one after the other, then all the near-duplicates together."""
    log = StateLog(model)
    async with model:
        await model.load()
        vectors = []
        for picture in pictures:
            log.subject = _short(picture.name)
            vectors.append(await model.forward(picture.image))
        images = [NamedImage(change, image) for of in changed for change, image in of.items()]
        with log.together(f"{len(images)} near-duplicates together"):
            results = await embed_all(model, images)
    for result in results:
        if isinstance(result, Err):
            raise result.error
    duplicates = np.stack([one.embedding for one in results if isinstance(one, Ok)])
    return _Embedded(np.stack(vectors), duplicates.reshape(len(pictures), -1, duplicates.shape[1]))


def _result(names: Sequence[str], changes: Sequence[str], embedded: _Embedded) -> bytes:
    """Return what is printed: the most similar other pictures, then the near-duplicates found."""
    others = np.asarray(cosine_similarity(embedded.pictures, embedded.pictures))
    np.fill_diagonal(others, -np.inf)
    found = embedded.duplicates @ embedded.pictures.T  # (pictures, changes, pictures)
    own = np.eye(len(names), dtype=bool)
    hits = np.argmax(found, axis=2) == np.arange(len(names))[:, None]
    nearest = _table("picture", "most similar other", "cosine")
    for name, row in zip(names, others, strict=True):
        other = names[int(np.argmax(row))]
        nearest.add_row(_short(name), _short(other), f"{row.max():.2f}")
    copies = _table("near-duplicate", "found", "to its own, at least", "to others, at most")
    for index, change in enumerate(changes):
        of_change = found[:, index]
        copies.add_row(
            change,
            f"{hits[:, index].sum()} of {len(names)}",
            f"{of_change[own].min():.2f}",
            f"{of_change[~own].max():.2f}",
        )
    verdict = (
        f"{hits.sum()} of {hits.size} near-duplicates are nearest to the picture they were made "
        "from.\n"
    )
    return b"\n".join((b"", render_table(nearest), render_table(copies), verdict.encode()))


def _table(*columns: str) -> Table:
    """Return an empty table; its last columns hold numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        words = column in {"picture", "most similar other", "near-duplicate"}
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _short(name: str) -> str:
    return shorten_middle(name, _NAME_WIDTH)


def _keep(
    pictures: Sequence[_Picture], changed: Sequence[dict[str, Image.Image]], folder: Path
) -> None:
    """Save everything as PNG, under the names of the pictures and the changes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stems = [Path(picture.name).stem for picture in pictures]
        if len(set(stems)) < len(stems):
            stems = [picture.name.replace("/", "_") for picture in pictures]
        for stem, picture, changes in zip(stems, pictures, changed, strict=True):
            picture.image.save(folder / f"{stem}.png")
            for change, image in changes.items():
                image.save(folder / f"{stem}-{change}.png")
    except OSError as exc:
        raise unwritable(folder, exc.strerror or str(exc)) from exc
