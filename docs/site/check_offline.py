"""Check that the built pages are complete without a network.

    python docs/site/check_offline.py build/docs

Every link and image must lead to an existing file, and every anchor to an element; a browser may
load nothing from elsewhere. Exits with 1 otherwise.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {("img", "src"), ("script", "src"), ("source", "srcset"), ("iframe", "src")}
_LOADED_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest"}


class Page(HTMLParser):
    """What one page links to and loads, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element refers to and is called."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.loaded |= {value for name, value in given.items() if (tag, name) in _LOADED}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "link" and _LOADED_RELATIONS & set(given.get("rel", "").split()):
            self.loaded.add(given["href"])


def find_faults(folder: Path) -> list[str]:
    """Return what is wrong with the pages of a folder, one line each."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    faults = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for target in sorted(page.links | page.loaded):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded and parts.scheme != "data":
                    faults.append(f"{where} loads {target}")
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                faults.append(f"{where}: {target} is not there")
            elif parts.fragment and unquote(parts.fragment) not in pages[file].anchors:
                faults.append(f"{where}: {target} has no such anchor")
    for style in folder.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or "@import" in text:
            faults.append(f"{style.relative_to(folder)} loads something from elsewhere")
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links")
    return faults


if __name__ == "__main__":
    found = find_faults(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "all links lead somewhere, and nothing is loaded from elsewhere")
    sys.exit(bool(found))
