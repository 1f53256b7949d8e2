"""Export CLIP checkpoints as `.pte` programs that run fast on XNNPACK."""

from aioembed.export.clip.program import MAX_BATCH, RECIPE, ClipOptions, export_clip
from aioembed.export.clip.report import ClipReport

__all__ = ["MAX_BATCH", "RECIPE", "ClipOptions", "ClipReport", "export_clip"]
