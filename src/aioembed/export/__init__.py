"""Export encoders as `.pte` programs that run fast on XNNPACK (the `[export]` extra)."""

from aioembed.export.program import MAX_BATCH, RECIPE, ExportOptions, export_model
from aioembed.export.report import ExportReport

__all__ = ["MAX_BATCH", "RECIPE", "ExportOptions", "ExportReport", "export_model"]
