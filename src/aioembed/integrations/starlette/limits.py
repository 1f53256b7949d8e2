"""How much one request may ask for."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

__all__ = ["ServerLimits"]

_MEBI = 1024 * 1024


class ServerLimits(BaseModel):
    """How much one request may ask for.

    Attributes:
        max_body_bytes: Most bytes of a request's body, counted as they arrive.
        max_inputs: Most images and texts in one request.
        inputs_at_once: How many inputs of one request are embedded at the same time, so that a
            long request leaves room for others.
        body_timeout: Seconds in which a body must have arrived.
        request_timeout: Seconds that a request may take once its body is there.
        max_streams: Most open streams of states.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: PositiveInt = 16 * _MEBI
    max_inputs: PositiveInt = 256
    inputs_at_once: PositiveInt = 8
    body_timeout: PositiveFloat = 30.0
    request_timeout: PositiveFloat = 120.0
    max_streams: PositiveInt = 64
