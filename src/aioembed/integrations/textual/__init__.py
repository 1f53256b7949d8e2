"""Models in Textual apps: a widget that shows one, and a mixin that opens, binds and closes them.

Needs the extra `textual`.
"""

try:
    import textual as _textual  # noqa: F401
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "textual", "textual") from _exc

from .mixin import ModelMixin as ModelMixin
from .mixin import StateChanged as StateChanged
from .status import ModelStatus as ModelStatus
from .status import describe_download as describe_download
from .status import describe_work as describe_work
from .status import format_bytes as format_bytes
from .status import format_eta as format_eta

__all__ = [
    "ModelMixin",
    "ModelStatus",
    "StateChanged",
    "describe_download",
    "describe_work",
    "format_bytes",
    "format_eta",
]
