"""`aioembed export`: programs from checkpoints."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import DebugOption, guarded, warn, write_result

__all__ = ["export"]


class ExportedModel(StrEnum):
    """What can be exported."""

    CLIP_VIT_BASE_PATCH32 = "clip-vit-base-patch32"
    CLIP_VIT_BASE_PATCH16 = "clip-vit-base-patch16"
    CLIP_VIT_LARGE_PATCH14 = "clip-vit-large-patch14"


def export(
    model: Annotated[
        ExportedModel, typer.Argument(metavar="MODEL", help="Such as clip-vit-base-patch32.")
    ],
    *,
    tower: Annotated[Literal["image", "text"], typer.Option(help="Which encoder.")] = "image",
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 is a quarter of the size.")
    ] = "fp32",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|HUB_ID",
            help="Checkpoint in transformers' format; the model's own on the hub if not given.",
            show_default=False,
        ),
    ] = None,
    preprocess: Annotated[
        Literal["clip", "rne"],
        typer.Option(help="clip as CLIP was trained, rne as React Native ExecuTorch does."),
    ] = "clip",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .pte file to write.")],
    norm: Annotated[
        Literal["auto", "ln", "bn"], typer.Option(help="Form of the norms; auto tries both.")
    ] = "auto",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images to balance int8 with and to judge on; drawn ones if not given.",
            show_default=False,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Export an encoder of a CLIP checkpoint as a .pte program; needs the extra `export`.

    Steps go to stderr, the report to stdout. Programs carry their preprocessing.
    """
    with guarded(debug):
        from aioembed.export.clip import (  # noqa: PLC0415  # the extra is optional
            ClipOptions,
            export_clip,
        )

        options = ClipOptions(
            tower=tower,
            precision=precision,
            preprocessing=preprocess,
            norm=norm,
            calibrate=calibrate,
        )
        report = export_clip(weights or f"openai/{model.value}", out, options, progress=warn)
        write_result(f"{report}\n".encode(), None)
