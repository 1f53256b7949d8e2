"""Models in Textual apps: a widget that shows one, a mixin that holds and binds them.

Needs the extra `textual`.
"""

try:
    import textual as textual
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "textual", "textual") from _exc

from .binding import ModelMixin as ModelMixin
from .binding import StateChanged as StateChanged
from .figures import describe_download as describe_download
from .figures import describe_work as describe_work
from .figures import format_bytes as format_bytes
from .figures import format_eta as format_eta
from .status import ModelStatus as ModelStatus
