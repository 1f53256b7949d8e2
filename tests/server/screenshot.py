"""Take the picture of the server's page for the README: `python -m tests.server.screenshot`.

Needs playwright, Chromium and the extra `server`.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from aioembed.testing.photographs import near_duplicates, photographs

from .test_page import ARGUMENTS, DROP

PICTURE = Path(__file__).parents[2] / "docs" / "assets" / "server-page.png"
SHOWN = (
    "cat",
    "cat-mirrored",
    "coffee",
    "coffee-grey",
    "astronaut",
    "photographer",
    "grass",
    "gravel",
)


def shown() -> list[tuple[str, str]]:
    """Return names and base64 of the pictures that are dropped onto the page."""
    album = photographs()
    files = []
    for name in SHOWN:
        picture, _, change = name.partition("-")
        image = near_duplicates(album[picture])[change] if change else album[picture]
        files.append((name, _as_base64(image)))
    return files


def _as_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/readyz") as answer:
                json.load(answer)
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("the server did not become ready")


def main() -> None:
    url = f"http://127.0.0.1:{(port := _free_port())}"
    server = subprocess.Popen([sys.executable, "-m", "aioembed", "serve", "--port", str(port)])
    try:
        _wait_until_ready(url)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=list(ARGUMENTS)
            )
            page = browser.new_page(viewport={"width": 960, "height": 800})
            page.goto(url)
            page.get_by_text("ready", exact=True).wait_for()
            page.evaluate(DROP, shown())
            page.get_by_text("Compared 8 images.").wait_for()
            page.get_by_text("ready", exact=True).wait_for()
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            shot.convert("RGB").quantize(256).save(PICTURE, optimize=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
