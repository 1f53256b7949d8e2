"""`aioembed download` and `aioembed cache`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

pytest.importorskip("typer")

import typer
from typer.testing import CliRunner, Result

from aioembed.cli.models import cache_app, download, models
from aioembed.download import Cache, Fetcher, Resource


@pytest.fixture
def invoke() -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(download)
    app.command()(models)
    app.add_typer(cache_app)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    return run


@pytest.fixture
def cached(cache: Cache, monkeypatch: pytest.MonkeyPatch, scripted: Any, serve_file: Any) -> Any:
    """Two downloaded files, and the server gone."""
    monkeypatch.setenv("AIOEMBED_CACHE", str(cache.directory))

    async def fill() -> Any:
        async with scripted(serve_file()) as server:
            wanted = [Resource(f"{server.origin}/{name}.pte") for name in "ab"]
            return await Fetcher(cache).fetch(wanted)

    return anyio.run(fill)


def test_download_of_a_cached_url_prints_its_path(invoke: Any, cached: Any) -> None:
    result = invoke("download", cached[0].url)
    assert result.exit_code == 0
    assert result.stdout == f"{cached[0].path}\n"
    assert "in the cache already" in result.stderr


def test_download_of_an_embedded_model_needs_no_network(invoke: Any) -> None:
    result = invoke("download", "efficientnet-lite0")
    assert result.exit_code == 0
    assert Path(result.stdout.strip()).name.endswith(".pte")


def test_download_that_fails_says_so_with_the_exit_code_for_it(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("download", "https://huggingface.co/a/b/resolve/main/m.pte")
    assert result.exit_code == 4
    [error] = [line for line in result.stderr.splitlines() if "error" in line]
    assert error.startswith("aioembed: error: https://huggingface.co/a/b/resolve/main/m.pte")


def test_list_and_size(invoke: Any, cached: Any) -> None:
    listed = invoke("cache", "list", "--format", "json")
    assert [file["url"] for file in json.loads(listed.stdout)] == [file.url for file in cached]
    assert "first download" in invoke("cache", "list").stdout
    assert int(invoke("cache", "size").stdout) > 600_000


def test_verify_names_the_damaged_and_exits_with_the_code_of_a_model_at_fault(
    invoke: Any, cached: Any
) -> None:
    assert invoke("cache", "verify").exit_code == 0
    cached[0].path.write_bytes(b"damaged")
    result = invoke("cache", "verify")
    assert result.exit_code == 3
    assert str(cached[0].path) in result.stderr
    assert result.stdout == f"{cached[1].sha256}  {cached[1].path}\n"


def test_delete_by_name_by_url_and_all(invoke: Any, cached: Any) -> None:
    assert invoke("cache", "delete").exit_code == 2
    assert invoke("cache", "delete", "missing.pte").exit_code == 2
    assert invoke("cache", "delete", "a.pte").exit_code == 0
    assert not cached[0].path.exists()
    assert invoke("cache", "delete", cached[1].url).exit_code == 0
    assert not cached[1].path.exists()
    assert invoke("cache", "delete", "--all").exit_code == 0


def test_pin_writes_the_hashes_of_what_is_downloaded(
    invoke: Any, cached: Any, tmp_path: Path
) -> None:
    target = tmp_path / "pins.json"
    assert invoke("models", "--pin", target).exit_code == 0
    pins = json.loads(target.read_text())
    assert pins == {
        file.url: {"url": file.url, "sha256": file.sha256, "size_bytes": file.size}
        for file in cached
    }


def test_what_pin_wrote_is_required_by_a_download(
    invoke: Any, cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pins = tmp_path / "pins.json"
    assert invoke("models", "--pin", pins).exit_code == 0
    everything = invoke("download", "--pins", pins)
    assert everything.exit_code == 0
    assert everything.stdout.split() == [str(file.path) for file in cached]
    one = invoke("download", cached[0].url, "--pins", pins)
    assert one.stdout.split() == [str(cached[0].path)]

    pins.write_text(pins.read_text().replace(cached[0].sha256, "0" * 64, 1))
    assert invoke("download", "--pins", pins).exit_code == 4
    assert invoke("download", cached[0].url, "--pins", pins).exit_code == 4
    assert invoke("download", cached[1].url, "--pins", pins).exit_code == 0


@pytest.mark.parametrize(("now", "code"), [(b"the same", 0), (b"replaced", 3)])
def test_pins_bring_the_same_file_to_another_machine_or_none(
    *,
    invoke: Any,
    scripted: Any,
    serve_file: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    now: bytes,
    code: int,
) -> None:
    pins = tmp_path / "pins.json"

    async def on_two_machines() -> Result:
        async with scripted(serve_file(body=b"the same"), serve_file(body=now)) as server:
            monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "one"))
            await to_thread.run_sync(invoke, "download", f"{server.origin}/a.pte")
            await to_thread.run_sync(invoke, "models", "--pin", pins)
            monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "another"))
            return await to_thread.run_sync(invoke, "download", "--pins", pins)

    result = anyio.run(on_two_machines)
    assert result.exit_code == code
    assert [path.read_bytes() for path in map(Path, result.stdout.split())] == (
        [] if code else [b"the same"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a MODEL"),
        (["--pins", "{missing}"], "No such file"),
        (["--pins", "{broken}"], "is not what `aioembed models --pin` writes"),
        (["--pins", "{wrong}"], "is not what `aioembed models --pin` writes"),
        (["https://example.org/m.pte", "--pins", "{empty}"], "no hash of https://example.org"),
        (["https://example.org/m.pte", "--pins", "{empty}", "--sha256", "0" * 64], "not with"),
    ],
)
def test_pins_that_cannot_be_used_are_wrong_usage(
    invoke: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").write_text("{}")
    (tmp_path / "broken").write_text("{")
    entry = {"url": "https://example.org/m.pte", "sha256": "none", "size_bytes": 1}
    (tmp_path / "wrong").write_text(json.dumps({"m": entry}))
    places = {name: tmp_path / name for name in ("missing", "empty", "broken", "wrong")}
    result = invoke("download", *(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_download_of_another_hash_than_the_pinned_one_is_refused(
    invoke: Any, cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert invoke("download", cached[0].url, "--sha256", cached[0].sha256).exit_code == 0
    assert invoke("download", cached[0].url, "--sha256", "0" * 64).exit_code == 4


def test_prune_to_a_size(invoke: Any, cached: Any) -> None:
    assert invoke("cache", "prune").stdout == "0 bytes freed\n"
    result = invoke("cache", "prune", "--max-size", "0.4")
    assert len(result.stdout.splitlines()) == 2
    assert invoke("cache", "prune", "--older-than", "1").stdout == "0 bytes freed\n"
