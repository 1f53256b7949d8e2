"""The page in a browser: images are dropped, the download is followed, the heat map appears."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal
from PIL import Image

from aioembed.testing import HubServer

from ..programs import TINY_IMAGE_PROGRAM
from .conftest import Server, picture

playwright = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

SHOTS = os.environ.get("AIOEMBED_SCREENSHOTS")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, data] of files) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(params=["light", "dark", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    look = request.param
    context = browser.new_context(
        color_scheme="dark" if look == "dark" else "light",
        viewport={"width": 375, "height": 740} if look == "phone" else None,
    )
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    yield page
    shoot(page, look)
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    context.close()
    assert not wide, "the page scrolls sideways"
    assert not faults


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def drop(page: Page, files: dict[str, bytes]) -> None:
    page.evaluate(DROP, [[n, base64.b64encode(data).decode()] for n, data in files.items()])


def drop_two(page: Page) -> None:
    drop(page, {f"{n}.png": picture(n) for n in range(2)})


def test_dropped_images_are_compared_and_scored(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.locator(".status", has_text="ready").nth(2).wait_for()
    drop_two(page)
    page.locator("#heatmap td").nth(3).wait_for()
    cells = page.locator("#heatmap tbody td").all_inner_texts()
    assert (cells[0], cells[3], cells[1]) == ("1.000", "1.000", cells[2])
    assert page.locator("#thumbnails img").count() == 2
    page.get_by_label("Model", exact=True).select_option("clip")
    page.get_by_text("Compared 2 images.").wait_for()
    page.get_by_label("Descriptions").fill("a photo of a cat\na photo of a dog\ntrees")
    page.get_by_role("button", name="Score images").click()
    page.locator("#scores tbody td").nth(5).wait_for()
    shoot(page, "scores")


XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF "
    b"xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description "
    b"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/></rdf:RDF></x:xmpmeta>"
)


def jpeg(exif_orientation: int | None, xmp: bytes) -> bytes:
    exif = Image.Exif()
    if exif_orientation is not None:
        exif[0x0112] = exif_orientation
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "JPEG", exif=exif.tobytes(), xmp=xmp)
    return file.getvalue()


def test_thumbnails_are_turned_by_xmp_where_exif_says_nothing(
    browser: Browser, server: Server
) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        files = {"xmp.jpg": jpeg(None, XMP), "exif.jpg": jpeg(1, XMP), "none.jpg": jpeg(None, b"")}
        drop(page, files)
        page.locator('#thumbnails img[style*="rotate(90deg)"]').wait_for()
        page.get_by_text("Compared 3 images.").wait_for()
        turns = (
            "[...document.querySelectorAll('#thumbnails img')].map((one) => one.style.transform)"
        )
        assert page.evaluate(turns) == ["rotate(90deg)", "", ""]


def test_everything_is_reached_and_done_by_keyboard(browser: Browser, server: Server) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        page.locator(".status", has_text="ready").nth(2).wait_for()
        drop_two(page)
        page.locator("#heatmap td").nth(3).wait_for()
        page.get_by_role("button", name="Remove 1.png").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Compared 1 image.").wait_for()
        assert page.evaluate("document.activeElement.id") == "files"
        reached = set()
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"model", "clear", "labels"} <= reached


def test_a_broken_image_is_marked_and_the_others_are_compared(
    browser: Browser, server: Server
) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        page.locator(".status", has_text="ready").nth(2).wait_for()
        drop(page, {"a.png": picture(0), "broken.png": b"no image", "b.png": picture(2)})
        page.get_by_text("Compared 2 images. 1 image cannot be read.").wait_for()
        assert page.locator("#heatmap tbody th").all_inner_texts() == ["a.png", "b.png"]
        assert page.locator("#thumbnails .faulty .name").first.inner_text() == "broken.png"
        assert page.locator("#thumbnails .blank").inner_text() == "no preview"


def test_a_download_is_followed_until_the_heat_map_appears_and_then_the_servers_end(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Two images that are dropped meanwhile are compared once the model is there."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(HubServer(bytes_per_second=6_000)) as hub,
    ):
        url = hub.add("someone/model", "model.pte", TINY_IMAGE_PROGRAM.read_bytes())
        server = start_server("--model", f"remote={url}", "--cache-dir", tmp_path)
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(server.url)
            page.locator(".status", has_text="downloading").wait_for()
            drop_two(page)
            page.get_by_text("as soon as the model is ready").wait_for()
            shoot(page, "downloading")
            assert 0 <= page.locator("progress").evaluate("(bar) => bar.value") < 1
            page.locator("#heatmap td").nth(3).wait_for()
            page.locator(".status", has_text="ready").wait_for()
            page.get_by_role("status").filter(has_text="remote (image): ready").wait_for()
            assert server.stop() == 0
            page.get_by_text("trying again").wait_for()
            page.locator("#models.stale").wait_for()
