"""What a check of `aioembed doctor` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Check", "Verdict"]


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """Works, but somebody may wonder about it."""
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        verdict: How it is.
        found: What was seen.
        advice: What to do about it, or what it means.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    def as_record(self) -> dict[str, Any]:
        """Return the check for JSON."""
        return asdict(self)
