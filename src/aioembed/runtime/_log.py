"""Passes the native runtime's log on to `logging`."""

from __future__ import annotations

import logging
import re

from ._extension import native as _native

__all__ = ["forward_log"]

_logger = logging.getLogger("aioembed.runtime")
_logger.addHandler(logging.NullHandler())

_EXPECTED = re.compile(r"XNNWeightsCache.*flock\(.*\) failed \(errno=11\)")
"""The lock that the runtime asks for on packed weights, which are locked for sharing already."""
_LEVELS = {"D": logging.DEBUG, "I": logging.INFO, "E": logging.ERROR, "F": logging.CRITICAL}


def forward_log() -> None:
    """Emit what the runtime has logged since the last call, of whichever thread."""
    for level, message in _native.drain_log():
        number = _LEVELS.get(level, logging.INFO)
        if _EXPECTED.search(message):
            number = logging.DEBUG
        _logger.log(number, "%s", message)
