"""The API key, asked for by the routes themselves: no form of a path leads around it."""

from __future__ import annotations

import hashlib
import secrets

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aioembed.errors import InvalidConfig

from .problems import Problem

__all__ = ["ApiKey", "KeyedRoute"]


class ApiKey:
    """What callers must send as `Authorization: Bearer KEY`.

    Args:
        key: None lets everyone in.

    Raises:
        InvalidConfig: It is empty.
    """

    def __init__(self, key: str | None) -> None:
        if key is not None and not key.strip():
            raise InvalidConfig("the API key is empty: give one, or None for no key")
        self._digest = _digest(key.encode()) if key is not None else None

    @property
    def is_wanted(self) -> bool:
        """Whether there is a key."""
        return self._digest is not None

    def is_given(self, scope: Scope) -> bool:
        """Return whether a request carries the key."""
        if self._digest is None:
            return False
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(_digest(given), self._digest)

    def check(self, scope: Scope) -> None:
        """Refuse a request without the key, where one is wanted.

        Raises:
            Problem: 401.
        """
        if self.is_wanted and not self.is_given(scope):
            raise Problem(
                401,
                "send the server's key as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class KeyedRoute(Route):
    """A route that answers nothing, for no method, without the key."""

    key: ApiKey

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.key.check(scope)
        await super().handle(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
