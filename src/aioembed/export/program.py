"""From a checkpoint to a `.pte` on disk, judged."""

from __future__ import annotations

import errno
import gc
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aioembed.errors import (
    DiskFull,
    ExportError,
    InvalidConfig,
    MissingExtra,
    shorten,
)
from aioembed.export.checkpoint import Checkpoint, PixelSource, locate
from aioembed.export.families import TextShape, Tower, VisionShape
from aioembed.export.lowering import Lowered, lower
from aioembed.export.report import ExportReport
from aioembed.models import Precision, Preprocessing, ProgramMetadata

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aioembed.export.blocks import NormForm
    from aioembed.export.tune import NormChoice

__all__ = ["MAX_BATCH", "RECIPE", "ExportOptions", "export_model"]

RECIPE = 3
"""Version of the rewrite; it changes whenever the same checkpoint gives other vectors or inputs."""

MAX_BATCH = 4
"""Most images in one call: more of them gain nothing, and each takes 3 MB of working memory."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        tower: Which of the checkpoint's encoders.
        precision: Of the linears. `int8`: weights per output channel, activations per row and
            call, balanced first; linears that lose too much so stay fp32. A text program's
            token table is int8 as well then.
        preprocessing: Of the images in the space: `checkpoint` as its `preprocessor_config.json`
            says, `clip`, `siglip` or `dinov2` as those are published, `rne` as the React Native
            hook does. A text program says it too, since it shares the space.
        norm: Form of the norms; `auto` tries both on the weights.
        calibrate: Folder of images to balance, choose and judge on; those that ship where None.
        max_batch: Most images in one call; 1 makes the program's batch static.
        image_size: Side of the images in pixels, for families whose positions can be
            interpolated (DINOv2); what the preprocessing says where None.
        pooling: What DINOv2's vector is: of the class token, or the mean of the patches.
    """

    tower: Tower = "image"
    precision: Precision = "fp32"
    preprocessing: PixelSource = "checkpoint"
    norm: Literal["auto", "ln", "bn"] = "auto"
    calibrate: Path | None = None
    max_batch: int = MAX_BATCH
    image_size: int | None = None
    pooling: Literal["class", "mean"] = "class"


def export_model(
    weights: str | Path,
    out: Path,
    options: ExportOptions,
    *,
    progress: Callable[[str], None] = lambda _step: None,
) -> ExportReport:
    """Export a tower of a checkpoint as a `.pte` program on XNNPACK.

    The family is found by the checkpoint's config: CLIP, SigLIP (and SigLIP 2 of fixed
    resolution), or DINOv2 with or without registers.

    The image program's `forward` takes float32 `(batch, patches, 3 * patch_size ** 2)`: the
    layout `patches` of `Preprocessing`, values 0..1, mean and std inside the program. The batch
    is dynamic, from 1 to `max_batch`.

    CLIP's text program's `forward` takes int64 `(1, tokens)`, from 2 to the context length, any
    number of them: the ids of one text, from its start-of-text token to its first end-of-text
    token, both included, without padding and without a mask. SigLIP's takes texts that are padded
    to the context length, as the metadata's `tokenization` says.

    All return float32 `(batch, embedding_dim)`, rows of length 1, and carry `ProgramMetadata`.

    Args:
        weights: A checkpoint's folder in transformers' format, or a hub id.
        out: File to write; replaced when the program is complete.
        options: How.
        progress: Called with a line per step.

    Returns:
        What was written, and how it compares with transformers' own model.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, is of no known family, or lacks
            what says how its inputs are prepared.
        InvalidConfig: An option cannot work, or `calibrate` has no images.
        DiskFull: There is no space for the file.
        ExportError: The file cannot be written, or the checkpoint cannot be lowered.
        MissingExtra: torch, transformers, executorch or safetensors is not installed.
    """
    try:
        import torch  # noqa: F401

        from aioembed.export.towers import reference
    except ImportError as exc:
        raise MissingExtra("torch", "export") from exc
    if options.max_batch < 1:
        raise InvalidConfig(f"max_batch is {options.max_batch}, and must be at least 1")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ExportError(f"cannot write {shorten(out)}: name a file in a folder that exists")
    progress(f"checkpoint: {weights}")
    work = _Export.of(Checkpoint.open(locate(weights)), options)
    progress(f"reference: transformers' {work.title} on {len(work.samples)} samples")
    wanted = reference(work.checkpoint, work.shape, work.samples)
    choice = work.choose_norm(wanted, progress)
    progress(f"lowering to XNNPACK: {options.precision}, norms {choice.form}")
    lowered, exempt, tuned = work.lower(choice.form, wanted)
    progress(f"writing {out}: {lowered.size_bytes / 1e6:.0f} MB")
    _write(lowered, out)
    notes = [("model", work.title), ("norms", f"{choice.form}: {choice.reason}"), *tuned]
    if work.checkpoint.licence:
        notes.append(("licence", work.checkpoint.licence))
    if options.tower == "text" and work.metadata.tokenizer_sha256 is None:
        notes.append(("tokenizer", "none here: the program needs the model's tokenizer.json"))
    delegation = lowered.delegation
    samples = [tuple(tensor.numpy() for tensor in sample) for sample in work.samples]
    del lowered, work
    gc.collect()  # torch's graphs hold all weights in cycles, and the program is about to be loaded
    progress("judging the program")
    return ExportReport.of(out, delegation, samples, wanted.numpy(), notes=notes, exempt=exempt)


@dataclass(frozen=True)
class _Export:
    """One export: a tower, how it is exported, and what it is tried on."""

    checkpoint: Checkpoint
    options: ExportOptions
    shape: VisionShape | TextShape
    metadata: ProgramMetadata
    samples: Sequence[tuple[Tensor, ...]]

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: ExportOptions) -> _Export:
        """Settle sizes and preprocessing.

        Raises:
            CheckpointError: The checkpoint lacks the tower, or what says how it is fed.
            InvalidConfig: An option does not go with the family.
        """
        from aioembed.export.samples import image_samples, text_samples

        shape = checkpoint.shape(options.tower)
        preprocessing, tokenization = None, None
        if checkpoint.vision is not None:
            vision, preprocessing = _prepared(checkpoint.vision, checkpoint, options)
        if isinstance(shape, TextShape):
            tokenization = checkpoint.tokenization()
            samples = text_samples(shape, tokenization)
        elif preprocessing is not None:
            shape, samples = vision, image_samples(preprocessing, options.calibrate)
        scale = checkpoint.scalar("logit_scale")
        metadata = ProgramMetadata(
            name=f"{checkpoint.folder.name}-{options.tower}",
            modality=options.tower,
            embedding_dim=shape.embedding_dim,
            normalized=True,
            preprocessing=preprocessing,
            context_length=shape.context_length if isinstance(shape, TextShape) else None,
            tokenizer_sha256=(
                checkpoint.tokenizer_sha256 if isinstance(shape, TextShape) else None
            ),
            tokenization=tokenization,
            weights_sha256=_weights_id(checkpoint, options),
            precision=options.precision,
            logit_scale=None if scale is None else math.exp(scale),
            logit_bias=checkpoint.scalar("logit_bias"),
            recipe=f"{checkpoint.family.name.lower()}-{RECIPE}",
        )
        return cls(checkpoint, options, shape, metadata, samples)

    @property
    def title(self) -> str:
        """The model in a few words."""
        sizes = f"{self.shape.layers} blocks of {self.shape.width}"
        if isinstance(self.shape, VisionShape):
            pixels = f"{self.shape.image_size} pixels in patches of {self.shape.patch_size}"
            sizes = f"{pixels}, {sizes}, {self.shape.activation}"
        return f"{self.checkpoint.family.name}, {self.options.tower} tower, {sizes}"

    def build(
        self, norm: NormForm, *, final: bool = False, table: torch.dtype | None = None
    ) -> torch.nn.Module:
        """Make the tower's module; the final one with what only the program needs."""
        import torch

        from aioembed.export.towers import build_tower

        return build_tower(
            self.checkpoint,
            self.shape,
            norm=norm,
            dynamic=self._dynamic if final or self._dynamic == "tokens" else None,
            table=table or torch.float32,
        )

    @property
    def _dynamic(self) -> Literal["tokens", "batch"] | None:
        if isinstance(self.shape, TextShape):
            return None if self.shape.end_of_text is None else "tokens"
        return "batch" if self.options.max_batch > 1 else None

    def choose_norm(self, wanted: Tensor, progress: Callable[[str], None]) -> NormChoice:
        """Return the form of the norms that was asked for, or the one that trying says."""
        from aioembed.export.tune import NormChoice, choose_norm

        if self.options.norm != "auto":
            return NormChoice(self.options.norm, "asked for")
        progress("norms: trying both forms")
        return choose_norm(self.build, self.options.precision, self.samples, wanted)

    def lower(
        self, norm: NormForm, wanted: Tensor
    ) -> tuple[Lowered, tuple[str, ...], list[tuple[str, str]]]:
        """Return the program, the linears that stay fp32, and what the report says of int8."""
        from aioembed.export.tune import balance, choose_table, exempt_linears

        build = partial(self.build, norm, final=True)
        exempt, notes = tuple[str, ...](), list[tuple[str, str]]()
        if self.options.precision == "int8" and self.options.tower == "text":
            module, reason = choose_table(build, self.samples, wanted)
            notes.append(("token table", reason))
        else:
            module = build()
        if self.options.precision == "int8":
            if products := balance(module, self.samples):
                notes.append(("balancing", f"{products} products behind activations"))
            exempt = exempt_linears(module, self.samples, wanted)
        example, dynamic = self._example()
        lowered = lower(
            module,
            example,
            metadata=self.metadata,
            dynamic_shapes=dynamic,
            precision=self.options.precision,
            exempt=exempt,
        )
        return lowered, exempt, notes

    def _example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any]] | None]:
        """Return an example of the inputs, and which of their axes vary."""
        import torch

        (first,) = self.samples[0]
        if self._dynamic == "batch":
            batch = torch.export.Dim("batch", min=1, max=self.options.max_batch)
            return (first.repeat(2, 1, 1),), ({0: batch},)
        if self._dynamic == "tokens":
            longest = max(sample[0].shape[1] for sample in self.samples)
            tokens = torch.export.Dim("tokens", min=2, max=longest)
            return (first.new_zeros(1, longest // 2 + 1),), ({1: tokens},)
        return (first,), None


def _prepared(
    shape: VisionShape, checkpoint: Checkpoint, options: ExportOptions
) -> tuple[VisionShape, Preprocessing]:
    """Return the image tower for the export's images, and how those are prepared."""
    pixels = checkpoint.pixels(options.preprocessing)
    usual = pixels.preprocessing
    size = options.image_size
    if size is None:
        is_fixed = options.preprocessing != "checkpoint" and shape.antialias is None
        size = shape.trained_size if is_fixed else usual.height
    edge = usual.shortest_edge and round(usual.shortest_edge * size / usual.height)
    changes: dict[str, Any] = {"height": size, "width": size, "shortest_edge": edge}
    pixels = replace(pixels, preprocessing=usual.model_copy(update=changes))
    shape = shape.fed(pixels)
    if options.pooling == "mean":
        if shape.antialias is None:
            raise InvalidConfig("pooling 'mean' is DINOv2's: other families have one embedding")
        shape = replace(shape, pooling="mean")
    changes = {
        "layout": "patches",
        "patch_size": shape.patch_size,
        "program_mean": pixels.mean,
        "program_std": pixels.std,
    }
    return shape, pixels.preprocessing.model_copy(update=changes)


def _weights_id(checkpoint: Checkpoint, options: ExportOptions) -> str:
    """Return what names the weights; vectors of another pooling are another space."""
    return checkpoint.fingerprint + ("" if options.pooling == "class" else f"+{options.pooling}")


def _write(lowered: Lowered, out: Path) -> None:
    """Write the complete file or nothing."""
    needed, free = lowered.size_bytes, shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        msg = f"{shorten(out)} needs {needed:,} bytes, {free:,} are free: make space for it"
        raise DiskFull(msg)
    try:
        lowered.write(out.absolute())
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"no space for {shorten(out)} ({needed:,} bytes)") from exc
        raise ExportError(f"cannot write {shorten(out)}: {exc}") from exc
