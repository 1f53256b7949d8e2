"""What happens to a text of more tokens than the model reads."""

from __future__ import annotations

import warnings
from typing import Literal

from ..errors import TextTooLong, shorten

__all__ = ["Truncate", "TruncationWarning", "report_truncation"]

Truncate = Literal["warn", "error", "silent"]
"""`warn` cuts the text and warns, `error` refuses it, `silent` cuts it."""


class TruncationWarning(UserWarning):
    """A text had more tokens than the model reads; its end does not count in the vector."""


def report_truncation(
    text: str, *, count: int, limit: int, truncate: Truncate, stacklevel: int
) -> None:
    """Warn of a text that was cut, or refuse it.

    Args:
        text: The complete text.
        count: Its tokens, special ones included.
        limit: Most tokens that the model reads, special ones included.
        truncate: What to do.
        stacklevel: Frames from the caller of this function to the line to be named, from 1.

    Raises:
        TextTooLong: With `error`.
    """
    if truncate == "error":
        raise TextTooLong(
            f"{shorten(text)} has {count} tokens and the model reads {limit}: shorten it, or pass "
            'truncate="silent" to cut the end off'
        )
    if truncate == "warn":
        # The same words for every text: Python remembers each message it has shown, for good.
        warnings.warn(
            f"a text has more than the {limit} tokens that the model reads, and its end was cut "
            'off: truncate="error" refuses such texts, "silent" cuts without a warning',
            TruncationWarning,
            stacklevel=stacklevel + 1,
        )
