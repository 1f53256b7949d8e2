"""Files that untrusted input may not read, inline images, and every way to name an image."""

from __future__ import annotations

import base64
import io
import os
import tracemalloc
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from aioembed.errors import (
    FileReadFailed,
    ImageDecodeError,
    ImageTooLarge,
    InvalidConfig,
    InvalidUserInput,
    SourceRefused,
)
from aioembed.images import ImageInput, SourcePolicy, load_image

from .support import drawn

pytestmark = pytest.mark.anyio

TRUSTED = SourcePolicy.trusted()
UNTRUSTED = SourcePolicy.untrusted()


@pytest.fixture
def folder(tmp_path: Path, png: bytes) -> Path:
    """A folder that untrusted input may read from, beside a file that it may not read."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a cat.png").write_bytes(png)
    (tmp_path / "secret.png").write_bytes(png)
    return tmp_path / "open"


async def test_every_way_to_name_an_image_gives_its_pixels(folder: Path, png: bytes) -> None:
    path = folder / "a cat.png"
    text = base64.b64encode(png).decode()
    sources: list[ImageInput] = [
        str(path),
        path,
        path.as_uri(),
        f"file://localhost{quote(str(path))}",
        png,
        bytearray(png),
        memoryview(png),
        text,
        "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        f"data:image/png;base64,{text}",
        f"data:;BASE64,{quote(text)}",
        f"data:image/png,{quote(png)}",
        drawn(),
        np.asarray(drawn()),
        Image.open(io.BytesIO(png)),
    ]
    for source in sources:
        assert np.array_equal(await load_image(source, policy=TRUSTED), np.asarray(drawn()))


@pytest.mark.parametrize("make", [str, Path, Path.as_uri])
async def test_files_are_refused_for_untrusted_input_by_default(folder: Path, make: type) -> None:
    for name in ("a cat.png", "missing.png"):
        with pytest.raises(SourceRefused, match="'file' among them"):
            await load_image(make(folder / name), policy=UNTRUSTED)


async def test_below_a_root_nothing_leads_out(folder: Path) -> None:
    below = UNTRUSTED.allow(schemes={"file"}, file_roots=[folder])
    assert (await load_image(folder / "a cat.png", policy=below)).shape == (47, 61, 3)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    outside: list[ImageInput] = [
        folder.parent / "secret.png",
        f"{folder}/../secret.png",
        f"file://{folder}/%2e%2e/secret.png",
        folder / "link.png",
        folder / "up" / "secret.png",
        folder,
    ]
    for source in outside:
        with pytest.raises((SourceRefused, FileReadFailed)) as caught:
            await load_image(source, policy=below)
        assert isinstance(caught.value, SourceRefused), source
        assert caught.value.rule == "file_roots"


@pytest.mark.parametrize("below_root", [False, True])
async def test_pipes_devices_and_folders_are_refused(folder: Path, below_root: bool) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "sub").mkdir()
    roots = [folder, Path("/dev")] if below_root else None
    policy = TRUSTED.allow(file_roots=roots)
    for source, kind in (
        (folder / "pipe.png", "pipe"),
        (folder / "sub", "directory"),
        (Path("/dev/zero"), "device"),
    ):
        with pytest.raises(FileReadFailed, match=kind):
            await load_image(source, policy=policy)


async def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    missing: list[ImageInput] = [folder / "missing.png", str(folder / "missing.png")]
    for source in missing:
        with pytest.raises(FileReadFailed, match="missing"):
            await load_image(source, policy=TRUSTED)
    with pytest.raises(FileReadFailed, match="neither a URI nor"):
        await load_image("cat", policy=TRUSTED)
    for source in ("a\0b", "x" * 4000):
        with pytest.raises(FileReadFailed):
            await load_image(source, policy=TRUSTED)
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(ImageDecodeError, match="0 bytes"):
        await load_image(folder / "empty.png", policy=TRUSTED)
    with pytest.raises(ImageTooLarge, match="max_bytes"):
        await load_image(folder / "a cat.png", policy=TRUSTED.allow(max_bytes=10))


@pytest.mark.parametrize("uri", ["file://elsewhere/cat.png", "file:cat.png", "file:///a%00b"])
async def test_file_uris_that_name_no_local_path_are_refused(uri: str) -> None:
    with pytest.raises(InvalidUserInput, match="file"):
        await load_image(uri, policy=TRUSTED)


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "data:image/png,", ""])
async def test_oversized_inline_images_are_refused_before_decoding(prefix: str, png: bytes) -> None:
    source = prefix + base64.b64encode(png).decode() + "A" * 8_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="max_bytes"):
            await load_image(source, policy=UNTRUSTED.allow(max_bytes=1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "payload", ["data:", "data:image/png;base64", "data:;base64,????", "data:;base64,iVBORw0KGg=x"]
)
async def test_malformed_data_uris_are_errors(payload: str) -> None:
    with pytest.raises(ImageDecodeError):
        await load_image(payload, policy=UNTRUSTED)


async def test_malformed_raw_base64_is_an_error(png: bytes) -> None:
    text = base64.b64encode(png).decode()
    for broken in (text[:-7] + "!" * 7, text[:-3] + "é", "A" * 5001):
        with pytest.raises(ImageDecodeError):
            await load_image(broken, policy=UNTRUSTED)


def test_a_policy_is_frozen_and_checks_what_it_is_given() -> None:
    with pytest.raises(Exception, match="frozen"):
        TRUSTED.max_bytes = 5
    for wrong in ({"max_bytes": 0}, {"schemes": {"ftp"}}, {"formats": {"EPS"}}, {"nothing": 1}):
        with pytest.raises(InvalidConfig, match=next(iter(wrong))):
            UNTRUSTED.allow(**wrong)
    assert UNTRUSTED.allow(timeout=3).timeout == 3
    assert UNTRUSTED.allow(timeout=3) != UNTRUSTED == SourcePolicy.untrusted()


def _forms(png: bytes) -> dict[str, ImageInput]:
    text = base64.b64encode(png).decode()
    safe = base64.urlsafe_b64encode(png).decode()
    uri = "data:image/png;base64,"
    return {
        "without padding": text.rstrip("="),
        "url-safe": safe,
        "url-safe without padding": safe.rstrip("="),
        "with blanks": " ".join((text[:50], text[50:])) + " \t\r\n\f",
        "uri without padding": uri + text.rstrip("="),
        "uri, url-safe": uri + safe,
        "uri with a blank": "data:image/png; base64," + text,
        "uri with blanks around": f"\n {uri}{text} \n",
        "uri in capitals": uri.upper() + text,
        "uri percent-encoded": uri + quote(text, safe=""),
        "uri with parameters": "data:image/png;charset=utf-8;base64," + text,
        "uri with a fragment": f"{uri}{text}#here",
        "uri without a type": "data:;base64," + text,
        "open file": io.BytesIO(png),
    }


@pytest.mark.parametrize("form", _forms(b""))
@pytest.mark.parametrize("policy", [TRUSTED, UNTRUSTED], ids=["trusted", "not"])
async def test_base64_is_read_as_browsers_do(form: str, policy: SourcePolicy, png: bytes) -> None:
    padded = next(png + b"\0" * count for count in range(3) if len(png + b"\0" * count) % 3 == 1)
    got = await load_image(_forms(padded)[form], policy=policy)
    assert np.array_equal(got, np.asarray(drawn()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "empty string"),
        (" \n", "empty string"),
        (b"", "0 bytes"),
        (io.StringIO("text"), "mode 'rb'"),
        (io.BytesIO(), "nothing left to read"),
        (b"data:image/png;base64,iVBORw0KGgo=", "pass it as str"),
        ("a photo of a cat", "this model embeds images"),
    ],
)
@pytest.mark.parametrize("policy", [TRUSTED, UNTRUSTED], ids=["trusted", "not"])
async def test_what_is_nearly_an_image_gets_a_hint(
    source: ImageInput, message: str, policy: SourcePolicy
) -> None:
    with pytest.raises(InvalidUserInput, match=message):
        await load_image(source, policy=policy)


async def test_bytes_that_are_base64_get_a_hint(png: bytes) -> None:
    with pytest.raises(ImageDecodeError, match="b64decode"):
        await load_image(base64.b64encode(png), policy=TRUSTED)


async def test_open_files_keep_to_the_limits(folder: Path, png: bytes) -> None:
    with (folder / "a cat.png").open("rb") as file:
        assert np.array_equal(await load_image(file, policy=UNTRUSTED), np.asarray(drawn()))
    with pytest.raises(FileReadFailed, match="closed"):
        await load_image(file, policy=UNTRUSTED)
    with pytest.raises(ImageTooLarge, match="max_bytes"):
        await load_image(io.BytesIO(png), policy=UNTRUSTED.allow(max_bytes=10))

    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return png

    with pytest.raises(InvalidUserInput, match="await"):
        await load_image(Upload(), policy=UNTRUSTED)  # type: ignore[arg-type]


async def test_reading_a_file_asks_for_what_it_has(folder: Path) -> None:
    tracemalloc.start()
    try:
        await load_image(folder / "a cat.png", policy=TRUSTED)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_proxies_go_with_private_addresses_only() -> None:
    assert TRUSTED.allow(environment_proxies=True).environment_proxies
    with pytest.raises(InvalidConfig, match="environment_proxies"):
        UNTRUSTED.allow(environment_proxies=True)
