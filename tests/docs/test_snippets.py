"""Every block of Python on the pages runs as it stands, or says why not."""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import re
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import CodeType

import anyio
import numpy as np
import pytest

import aioembed
from aioembed.models import local_path
from aioembed.testing import HubServer

from .pages import PAGES, Snippet, snippets

_MOST_NOT_RUN = 6  # other libraries' own code, and what needs a cluster or torch
_OPTIONAL = {
    "aioembed.integrations.ray": "ray",
    "aioembed.integrations.fastapi": "fastapi",
    "aioembed.integrations.textual": "textual",
    "fastapi": "fastapi",
    "faststream": "faststream",
    "IPython": "IPython",
    "ipywidgets": "ipywidgets",
    "langchain_core": "langchain_core",
    "llama_index": "llama_index.core",
    "openai": "openai",
    "pydantic_ai": "pydantic_ai.embeddings",
    "ray": "ray",
    "redis": "redis",
    "rich": "rich",
    "starlette": "starlette",
    "textual": "textual",
    "watchfiles": "watchfiles",
}
_SERVER = "http://127.0.0.1:8000"
_ALL = snippets()


class Stage:
    """Runs a snippet after its setup, in one namespace and one event loop."""

    def __init__(self, snippet: Snippet, folder: Path, running: ExitStack) -> None:
        self._snippet = snippet
        self._running = running
        self._replaced: dict[str, str] = {}
        shipped = local_path(aioembed.EFFICIENTNET_LITE0)
        assert shipped is not None
        self._names: dict[str, object] = {
            "__name__": "snippet",  # what is guarded by "__main__" would take the terminal
            "EFFICIENTNET_LITE0": aioembed.EFFICIENTNET_LITE0,
            "HubServer": HubServer,
            "ImageEmbeddings": aioembed.ImageEmbeddings,
            "TextEmbeddings": aioembed.TextEmbeddings,
            "content": Path(shipped).read_bytes(),
            "hashlib": hashlib,
            "np": np,
            "serve": self._serve,
            "tmp_path": folder,
        }

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            self._names["stack"] = stack
            await self._run(self._compile(self._snippet.setup, line=1))
            code = self._snippet.code
            for old, new in self._replaced.items():
                code = code.replace(old, new)
            await self._run(self._compile(code, line=self._snippet.line))

    @property
    def awaits(self) -> bool:
        """Whether it needs an event loop around it; it cannot start one inside another."""
        parts = (self._snippet.setup, self._snippet.code)
        return any(_awaits(self._compile(part, line=1)) for part in parts)

    async def _run(self, code: CodeType) -> None:
        result = eval(code, self._names)
        if _awaits(code):
            await result

    def _compile(self, source: str, *, line: int) -> CodeType:
        padded, page = "\n" * (line - 1) + source, str(self._snippet.page)
        code: CodeType = compile(padded, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return code

    def _serve(self, *arguments: str) -> None:
        from ..server.served import served, wait_ready

        server = self._running.enter_context(served(*arguments))
        wait_ready(server.url)
        self._replaced[_SERVER] = server.url


def _awaits(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _run_without_loop(stage: Stage) -> None:
    """Drive what awaits nothing, so that it may start an event loop itself."""
    with pytest.raises(StopIteration):
        stage.run().send(None)


def _modules(source: str) -> set[str]:
    """Return the modules that a block imports, each with its parents."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[: length + 1]) for length in range(len(parts))}
    return found


@pytest.mark.usefixtures("small_clip", "example_org")
@pytest.mark.parametrize(
    "snippet",
    [pytest.param(one, id=one.name) for one in _ALL if one.reason is None],
)
def test_a_snippet_runs(snippet: Snippet, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in sorted(_modules(snippet.setup) | _modules(snippet.code)):
        if module in _OPTIONAL:
            pytest.importorskip(_OPTIONAL[module])
    if "TextEmbeddings" in snippet.code:
        pytest.importorskip("tokenizers")
    with ExitStack() as running:
        running.callback(gc.unfreeze)  # a page has servers freeze what they have imported
        stage = Stage(snippet, folder, running)
        if stage.awaits:
            anyio.run(stage.run)
        else:
            _run_without_loop(stage)
    if snippet.output is not None:
        assert capsys.readouterr().out == snippet.output


def test_the_first_example_shows_what_it_prints() -> None:
    assert _ALL[0].page.name == "README.md"
    assert _ALL[0].output


def test_what_is_not_run_is_counted_and_says_why() -> None:
    not_run = [one for one in _ALL if one.reason is not None]
    assert 0 < len(not_run) <= _MOST_NOT_RUN
    assert all(one.reason for one in not_run)


def test_no_block_of_python_is_missed() -> None:
    shown = Counter(one.page for one in _ALL)
    fence = r"(?im)^\s*(?:```|~~~)\s*\{?\.?(?:python|py)\b.*$"
    for page in PAGES:
        fences = re.findall(fence, page.read_text(encoding="utf-8"))
        assert len(fences) == shown[page], page.name
