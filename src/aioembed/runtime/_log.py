"""Passes the native runtime's log on to `logging`."""

from __future__ import annotations

import logging

from ._extension import native as _native

__all__ = ["forward_log"]

_logger = logging.getLogger("aioembed.runtime")
_logger.addHandler(logging.NullHandler())

_LEVELS = {"D": logging.DEBUG, "I": logging.INFO, "E": logging.ERROR, "F": logging.CRITICAL}


def forward_log() -> None:
    """Emit what the runtime has logged since the last call, of whichever thread."""
    for level, message in _native.drain_log():
        _logger.log(_LEVELS.get(level, logging.INFO), "%s", message)
