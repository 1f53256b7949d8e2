"""From a checkpoint to a `.pte` on disk, judged."""

from __future__ import annotations

import errno
import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from aioembed.errors import DiskFull, ExportError, InvalidConfig, MissingExtra, shorten
from aioembed.export.clip.report import ClipReport, Int8Changes
from aioembed.export.lowering import Lowered, lower
from aioembed.models import (
    CLIP_PREPROCESSING,
    RNE_PREPROCESSING,
    Precision,
    Preprocessing,
    ProgramMetadata,
)

if TYPE_CHECKING:
    from torch import Tensor

    from aioembed.export.clip.checkpoint import Checkpoint
    from aioembed.export.clip.norms import NormChoice
    from aioembed.export.clip.towers import Tower

__all__ = ["MAX_BATCH", "RECIPE", "ClipOptions", "export_clip"]

RECIPE = "clip-3"
"""Version of the rewrite; it changes whenever the same checkpoint gives other vectors or inputs."""

MAX_BATCH = 4
"""Most images in one call: more of them gain nothing, and each takes 3 MB of working memory."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How to export.

    Attributes:
        tower: Which of CLIP's encoders.
        precision: Of the linears. `int8`: weights per output channel, activations per row and
            call, balanced first; linears that lose too much so stay fp32. A text program's
            token table is int8 as well then.
        preprocessing: Of the images in the space: `clip` as CLIP was trained, or `rne` as the
            React Native hook does. A text program says it too, since it shares the space.
        norm: Form of the norms; `auto` tries both on the weights.
        calibrate: Folder of images to balance, choose and judge on; drawn scenes where None.
        max_batch: Most images in one call; 1 makes the program's batch static.
    """

    tower: Tower
    precision: Precision = "fp32"
    preprocessing: Literal["clip", "rne"] = "clip"
    norm: Literal["auto", "ln", "bn"] = "auto"
    calibrate: Path | None = None
    max_batch: int = MAX_BATCH


def export_clip(
    weights: str | Path,
    out: Path,
    options: ClipOptions,
    *,
    progress: Callable[[str], None] = lambda _step: None,
) -> ClipReport:
    """Export a tower of a CLIP checkpoint as a `.pte` program on XNNPACK.

    The image program's `forward` takes float32 `(batch, patches, 3 * patch_size ** 2)`: the
    layout `patches` of `Preprocessing`, values 0..1, mean and std inside the program. The batch
    is dynamic, from 1 to `max_batch`.

    The text program's `forward` takes int64 `(1, tokens)`, from 2 to the context length, any
    number of them: the ids of one text, from its start-of-text token to its first end-of-text
    token, both included, without padding and without a mask.

    Both return float32 `(batch, embedding_dim)`, rows of length 1, and carry `ProgramMetadata`.

    Args:
        weights: A checkpoint's folder in transformers' format, or a hub id.
        out: File to write; replaced when the program is complete.
        options: How.
        progress: Called with a line per step.

    Returns:
        What was written, and how it compares with transformers' own model.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, or is not CLIP.
        InvalidConfig: An option cannot work, or `calibrate` has no images.
        DiskFull: There is no space for the file.
        ExportError: The file cannot be written, or the checkpoint cannot be lowered.
        MissingExtra: torch, transformers, executorch or safetensors is not installed.
    """
    try:
        import torch  # noqa: F401

        from aioembed.export.clip.checkpoint import Checkpoint, locate
        from aioembed.export.clip.towers import reference
    except ImportError as exc:
        raise MissingExtra("torch", "export") from exc
    if options.max_batch < 1:
        raise InvalidConfig(f"max_batch is {options.max_batch}, and must be at least 1")
    _check_folder(out)
    progress(f"checkpoint: {weights}")
    checkpoint = Checkpoint.open(locate(weights))
    preprocessing = _preprocessing(checkpoint, options)
    samples = _samples(checkpoint, options, preprocessing)
    progress(f"reference: transformers on {len(samples)} samples")
    wanted = reference(checkpoint, options.tower, samples)
    choice = _choose(checkpoint, options, samples, wanted, progress)
    progress(f"lowering to XNNPACK: {options.precision}, norms {choice.form}")
    lowered, changes = _lower(
        checkpoint, options, preprocessing, choice, samples=samples, wanted=wanted
    )
    progress(f"writing {out}: {lowered.size_bytes / 1e6:.0f} MB")
    _write(lowered, out)
    delegation = lowered.delegation
    del lowered, checkpoint
    gc.collect()  # torch's graphs hold all weights in cycles, and the program is about to be loaded
    progress("judging the program")
    return ClipReport.of(
        out,
        delegation,
        choice,
        [tuple(tensor.numpy() for tensor in sample) for sample in samples],
        wanted.numpy(),
        changes=changes,
    )


def _check_folder(out: Path) -> None:
    """Raise early where the file could not be written."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ExportError(f"cannot write {shorten(out)}: name a file in a folder that exists")


def _preprocessing(checkpoint: Checkpoint, options: ClipOptions) -> Preprocessing | None:
    """Return how the space's images are prepared; None where the checkpoint has no image tower."""
    if checkpoint.vision is None:
        return None
    base = CLIP_PREPROCESSING if options.preprocessing == "clip" else RNE_PREPROCESSING
    size = checkpoint.vision.image_size
    changes = {"height": size, "width": size, "layout": "patches"}
    return base.model_copy(update={**changes, "patch_size": checkpoint.vision.patch_size})


def _samples(
    checkpoint: Checkpoint, options: ClipOptions, preprocessing: Preprocessing | None
) -> Sequence[tuple[Tensor, ...]]:
    """Return inputs to choose and judge on."""
    from aioembed.export.clip.samples import image_samples, text_samples

    if options.tower == "text":
        return text_samples(checkpoint.text_tower())
    checkpoint.image_tower()
    return image_samples(cast("Preprocessing", preprocessing), options.calibrate)


def _choose(
    checkpoint: Checkpoint,
    options: ClipOptions,
    samples: Sequence[tuple[Tensor, ...]],
    wanted: Tensor,
    progress: Callable[[str], None],
) -> NormChoice:
    """Return the form of the norms that was asked for, or the one that trying says."""
    from aioembed.export.clip.norms import NormChoice, choose_norm

    if options.norm != "auto":
        return NormChoice(options.norm, "asked for")
    progress("norms: trying both forms")
    return choose_norm(checkpoint, options.tower, options.precision, samples, wanted)


def _lower(
    checkpoint: Checkpoint,
    options: ClipOptions,
    preprocessing: Preprocessing | None,
    choice: NormChoice,
    *,
    samples: Sequence[tuple[Tensor, ...]],
    wanted: Tensor,
) -> tuple[Lowered, Int8Changes]:
    """Return the program, and what int8 made necessary."""
    import torch

    from aioembed.export.clip.balance import balance
    from aioembed.export.clip.exempt import exempt_linears
    from aioembed.export.clip.towers import build_tower

    image, int8 = options.tower == "image", options.precision == "int8"
    batched = image and options.max_batch > 1
    module = build_tower(
        checkpoint,
        options.tower,
        norm=choice.form,
        dynamic="batch" if batched else None if image else "tokens",
        quantized_table=int8,
    )
    changes = Int8Changes()
    if int8:
        changes = Int8Changes(balance(module, samples), exempt_linears(module, samples, wanted))
    example, dynamic = samples[0], None
    if batched:
        example = (samples[0][0].repeat(2, 1, 1),)
        dynamic = ({0: torch.export.Dim("batch", min=1, max=options.max_batch)},)
    elif not image:
        longest = max(sample[0].shape[1] for sample in samples)
        example = (samples[0][0].new_zeros(1, longest // 2 + 1),)
        dynamic = ({1: torch.export.Dim("tokens", min=2, max=longest)},)
    metadata = _metadata(checkpoint, options, preprocessing)
    try:
        lowered = lower(
            module,
            example,
            metadata=metadata,
            dynamic_shapes=dynamic,
            precision=options.precision,
            exempt=changes.exempt,
        )
    except (RuntimeError, AssertionError) as exc:
        msg = f"the {options.tower} tower of {shorten(checkpoint.folder)} cannot be lowered: {exc}"
        raise ExportError(msg) from exc
    return lowered, changes


def _metadata(
    checkpoint: Checkpoint, options: ClipOptions, preprocessing: Preprocessing | None
) -> ProgramMetadata:
    """Return what the program says of itself."""
    text = checkpoint.text_tower() if options.tower == "text" else None
    shape = text or checkpoint.image_tower()
    return ProgramMetadata(
        name=f"{checkpoint.folder.name}-{options.tower}",
        modality=options.tower,
        embedding_dim=shape.embedding_dim,
        normalized=True,
        preprocessing=preprocessing,
        context_length=text.context_length if text else None,
        tokenizer_sha256=checkpoint.tokenizer_sha256 if text else None,
        weights_sha256=checkpoint.fingerprint,
        precision=options.precision,
        logit_scale=checkpoint.logit_scale,
        recipe=RECIPE,
    )


def _write(lowered: Lowered, out: Path) -> None:
    """Write the file whole or not at all."""
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
