"""`aioembed embed`: images in, vectors out."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio
import typer

from aioembed import ImageEmbeddings

from .batch import Batch, embed_with, named_images
from .exits import ExitCode
from .formats import EmbeddingFormat, encode_batch
from .guard import guarded, report_error, warn
from .options import DebugOption, ImagesArgument, ModelOption, ThreadsOption
from .output import OutputOption, check_output, write_result

__all__ = ["embed", "finish"]


def embed(
    images: ImagesArgument,
    *,
    form: Annotated[
        EmbeddingFormat,
        typer.Option("--format", "-f", help="npy is one float32 array (images, dim)."),
    ] = EmbeddingFormat.JSON,
    output: OutputOption = None,
    model: ModelOption = "gist-512",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Embed images and write their vectors.

    They have length 1 and are in the order of the arguments. An image that fails does not lose the
    others: json gives its error, npy a row of NaN, csv no line; stderr says why, and the exit code
    is 1.
    """
    with guarded(debug):
        check_output(output, binary=form is EmbeddingFormat.NPY)
        handle = ImageEmbeddings(model, threads=threads)
        batch = anyio.run(partial(embed_with, handle, named_images(images)))
        write_result(encode_batch(batch, form), output)
        finish(batch, debug=debug)


def finish(batch: Batch, *, debug: bool) -> None:
    """Say which images failed.

    Raises:
        typer.Exit: Any did.
    """
    for name, error in batch.failed:
        report_error(error, name=name, debug=debug)
    if len(batch.outcomes) > 1 and batch.failed:
        warn(f"{len(batch.failed)} of {len(batch.outcomes)} images failed")
    if batch.failed:
        raise typer.Exit(ExitCode.INPUT)
