"""A model hub on loopback, so that downloads can be tested and shown offline."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Self

from ._loopback import LoopbackServer, Reply, Request, file_reply

__all__ = ["HubServer"]


@dataclass(frozen=True)
class _File:
    content: bytes
    sha256: str


class HubServer:
    """Speaks the Hugging Face hub's `resolve` contract on loopback, inside `async with`.

    A file's address redirects to a second origin (another port) and announces its hash, size and
    revision (`X-Linked-Etag`, `X-Linked-Size`, `X-Repo-Commit`); that origin knows ETag, Range
    and If-Range. Works under asyncio and trio.

    Example:
        ```python
        async with HubServer(bytes_per_second=2e6) as hub:
            url = hub.add("someone/some-model", "model.pte", content)
            async with ImageEmbeddings(url) as model: ...
        ```

    Args:
        bytes_per_second: Slows bodies down, so that progress can be watched; may be changed.
        token: Required to download, if given; the other origin must never see it.
    """

    def __init__(self, *, bytes_per_second: float | None = None, token: str | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self._token = token
        self._files: dict[str, _File] = {}
        self._stored: dict[str, _File] = {}
        self._hub = LoopbackServer(self._resolve)
        self._storage = LoopbackServer(self._send)
        self._commit = secrets.token_hex(20)
        self._stack = AsyncExitStack()

    @property
    def endpoint(self) -> str:
        """The hub's origin, for `HF_ENDPOINT`."""
        return self._hub.origin

    @property
    def requests(self) -> list[Request]:
        """What the hub itself was asked."""
        return self._hub.requests

    @property
    def storage_requests(self) -> list[Request]:
        """What the origin that stores the files was asked."""
        return self._storage.requests

    @property
    def sent(self) -> int:
        """Bytes of files sent so far."""
        return self._storage.sent

    def add(self, repository: str, file: str, content: bytes, *, revision: str = "main") -> str:
        """Publish a file and return its address.

        Args:
            repository: `owner/name`.
            file: Path in the repository.
            content: Its bytes.
            revision: Branch, tag or commit.
        """
        path = f"/{repository}/resolve/{revision}/{file}"
        stored = _File(content, hashlib.sha256(content).hexdigest())
        self._files[path] = self._stored[f"/{stored.sha256}"] = stored
        return f"{self.endpoint}{path}"

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._storage)
        await self._stack.enter_async_context(self._hub)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._stack.aclose()

    def _resolve(self, request: Request) -> Reply:
        sent = request.headers.get("authorization")
        if self._token is not None and sent != f"Bearer {self._token}":
            return Reply(401, body=b"Invalid credentials", headers={"X-Error-Code": "GatedRepo"})
        file = self._files.get(request.path)
        if file is None:
            return Reply(404, body=b"Entry not found", headers={"X-Error-Code": "EntryNotFound"})
        headers = {
            "Location": f"{self._storage.origin}/{file.sha256}?signature={secrets.token_hex(8)}",
            "ETag": f'"{file.sha256}"',
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(len(file.content)),
            "X-Repo-Commit": self._commit,
        }
        return Reply(302, body=b"Found. Redirecting", headers=headers)

    def _send(self, request: Request) -> Reply:
        file = self._stored.get(request.path)
        if file is None:
            return Reply(404)
        reply = file_reply(request, file.content, etag=f'"{file.sha256[:32]}"')
        return replace(reply, bytes_per_second=self.bytes_per_second)
