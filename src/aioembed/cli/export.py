"""`aioembed export`: programs from checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import DebugOption, complete_paths, guarded, usage_error, warn, write_result

__all__ = ["export"]


class NamedCheckpoint(StrEnum):
    """Checkpoints on the hub that have a short name."""

    CLIP_VIT_BASE_PATCH32 = "clip-vit-base-patch32"
    CLIP_VIT_BASE_PATCH16 = "clip-vit-base-patch16"
    CLIP_VIT_LARGE_PATCH14 = "clip-vit-large-patch14"


def export(
    model: Annotated[
        NamedCheckpoint | None,
        typer.Argument(
            metavar="[MODEL]",
            help="One of OpenAI's, such as clip-vit-base-patch32; or name another by --weights.",
            show_default=False,
        ),
    ] = None,
    *,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|HUB_ID",
            help="Checkpoint in transformers' format: CLIP, SigLIP or DINOv2, found by its config.",
            autocompletion=complete_paths,
            show_default=False,
        ),
    ] = None,
    tower: Annotated[Literal["image", "text"], typer.Option(help="Which encoder.")] = "image",
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 is a quarter of the size.")
    ] = "fp32",
    preprocess: Annotated[
        Literal["checkpoint", "clip", "siglip", "dinov2", "rne"],
        typer.Option(
            help="checkpoint as its preprocessor_config.json says, a family's own, or rne as "
            "React Native ExecuTorch does."
        ),
    ] = "checkpoint",
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Side of the images, for DINOv2; the preprocessor's if not given.",
            show_default=False,
        ),
    ] = None,
    pooling: Annotated[
        Literal["class", "mean"],
        typer.Option(help="DINOv2's vector: of the class token, or the mean of the patches."),
    ] = "class",
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The .pte file to write.", autocompletion=complete_paths),
    ],
    norm: Annotated[
        Literal["auto", "ln", "bn"], typer.Option(help="Form of the norms; auto tries both.")
    ] = "auto",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            autocompletion=complete_paths,
            help="Images to balance int8 with and to judge on; those that ship if not given.",
            show_default=False,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Export an encoder as a .pte program; needs the extra `export`.

    Steps go to stderr, the report to stdout. Programs carry their preprocessing.
    """
    if weights is None and model is None:
        raise usage_error("name a MODEL, or a checkpoint with --weights")
    with guarded(debug), _quiet_stderr(debug) as say:
        from aioembed.export import ExportOptions, export_model  # noqa: PLC0415  # an extra

        options = ExportOptions(
            tower=tower,
            precision=precision,
            preprocessing=preprocess,
            norm=norm,
            calibrate=calibrate,
            image_size=image_size,
            pooling=pooling,
        )
        report = export_model(weights or f"openai/{model}", out, options, progress=say)
        write_result(f"{report}\n".encode(), None)


@contextmanager
def _quiet_stderr(debug: bool) -> Iterator[Callable[[str], None]]:
    """Keep what torch and its native code write there out of stderr, and give a way to write.

    Args:
        debug: Let everything through.
    """
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):  # replaced by something that is not a file
        debug, descriptor = True, -1
    if debug:
        yield warn
        return
    sys.stderr.flush()
    with (
        os.fdopen(os.dup(descriptor), "w", buffering=1) as kept,
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
    ):
        os.dup2(nowhere.fileno(), descriptor)
        try:
            yield lambda message: print(f"aioembed: {message}", file=kept)
        finally:
            sys.stderr.flush()
            os.dup2(kept.fileno(), descriptor)
