"""`aioembed similarity`: how alike images are."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Annotated

import anyio
import numpy as np
import typer
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, cosine_similarity

from .batch import Batch, embed_with, named_images
from .embed import finish
from .formats import error_record, to_csv, to_json
from .guard import guarded, usage_error
from .options import DebugOption, ImagesArgument, ModelOption, ThreadsOption
from .output import OutputOption, check_output, write_result
from .tables import base_names, render_table, similarity_table

__all__ = ["similarity"]

_DECIMALS = 6


class SimilarityFormat(StrEnum):
    """What `similarity` can write."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def similarity(
    images: ImagesArgument,
    *,
    form: Annotated[
        SimilarityFormat,
        typer.Option("--format", "-f", help="json and csv are for programs."),
    ] = SimilarityFormat.TABLE,
    output: OutputOption = None,
    model: ModelOption = "gist-512",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare images with each other.

    Cosine similarity is 1 for the same picture and about 0 for unrelated ones. An image that fails
    is left out of the table; stderr says why, and the exit code is 1.
    """
    with guarded(debug):
        if len(images) < 2:  # noqa: PLR2004  # a similarity is of two
            raise usage_error("similarity needs at least two images")
        check_output(output)
        handle = ImageEmbeddings(model, threads=threads)
        batch = anyio.run(partial(embed_with, handle, named_images(images)))
        write_result(_encode(batch, form, plain=output is not None), output)
        finish(batch, debug=debug)


def _matrix(batch: Batch) -> NDArray[np.floating]:
    vectors = [vector for _, vector in batch.embedded]
    if not vectors:
        return np.zeros((0, 0))
    stacked = np.stack(vectors)
    return np.asarray(cosine_similarity(stacked, stacked))


def _encode(batch: Batch, form: SimilarityFormat, *, plain: bool) -> bytes:
    names = [name for name, _ in batch.embedded]
    matrix = _matrix(batch)
    if form is SimilarityFormat.TABLE:
        table = similarity_table(base_names(names), matrix)
        return render_table(table, plain=plain) if len(names) > 1 else b""
    rounded = [[round(float(value), _DECIMALS) for value in row] for row in matrix]
    if form is SimilarityFormat.CSV:
        rows = [[name, *row] for name, row in zip(names, rounded, strict=True)]
        return to_csv([["input", *names], *rows])
    failed = [{"input": name, "error": error_record(error)} for name, error in batch.failed]
    return to_json(
        {
            "model": batch.model,
            "space_id": batch.space_id,
            "inputs": names,
            "similarities": rounded,
            "failed": failed,
        }
    )
