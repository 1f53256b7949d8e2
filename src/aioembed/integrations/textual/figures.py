"""A model's figures in words that fit 40 columns."""

from __future__ import annotations

from aioembed import ModelState, Statistics

__all__ = ["describe_download", "describe_work", "format_bytes", "format_eta"]

_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000
_MINUTE = 60
_HOUR = 60 * _MINUTE


def format_bytes(count: float) -> str:
    """Return a number of bytes, such as `61.3 kB` or `352 MB`."""
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count /= _STEP
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit and count < 100 else f"{count:.0f} {_UNITS[unit]}"  # noqa: PLR2004


def format_eta(seconds: float) -> str:
    """Return a duration, such as `8 s`, `2:05 min` or `1:30 h`."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02} min"
    return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02} h"


def describe_download(state: ModelState) -> str:
    """Return how far a download is, such as `24.5 kB of 61.3 kB · 30.1 kB/s · 1 s left`."""
    parts = [format_bytes(state.downloaded_bytes)]
    if state.total_bytes is not None:
        parts[0] += f" of {format_bytes(state.total_bytes)}"
    if state.is_paused:
        parts.append("paused")
    elif state.download_rate > 0:
        parts.append(f"{format_bytes(state.download_rate)}/s")
        if state.download_eta is not None:
            parts.append(f"{format_eta(state.download_eta)} left")
    return " · ".join(parts)


def describe_work(state: ModelState, statistics: Statistics) -> str:
    """Return what a loaded model does, such as `3 in the queue · 41.5/s · 1,204 done`."""
    parts = [f"{state.queue_depth} in the queue", f"{statistics.throughput:.1f}/s"]
    parts.append(f"{statistics.succeeded:,} done")
    if statistics.failed:
        parts.append(f"{statistics.failed:,} failed")
    return " · ".join(parts)
