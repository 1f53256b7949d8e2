"""Hooks of mkdocs: pages from outside this folder, and the diagram of the states."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File
from states_diagram import draw

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}
_SHOWN_FOLDERS = ("examples", "benchmarks")
_DIAGRAM = re.compile(r"!\[[^\]]*\]\(assets/states\.svg\)")
_HIDDEN = re.compile(r"<!-- (?:setup|not run).*?-->\n", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside the folder of the pages and is shown or linked."""
    for name, source in _PAGES.items():
        files.append(File.generated(config, name, content=_without_folder(source)))
    for folder in _SHOWN_FOLDERS:
        for path in sorted((_ROOT / folder).glob("*.py")):
            files.append(
                File.generated(config, f"{folder}/{path.name}.txt", abs_src_path=str(path))
            )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Draw the states, remove comments for the tests, and point links at the copies."""
    markdown = _DIAGRAM.sub(lambda _: draw(standalone=False), markdown)
    markdown = _HIDDEN.sub("", markdown)
    for name, source in _PAGES.items():
        markdown = markdown.replace(f"](../{source})", f"]({name})")
    return re.sub(r"\]\(\.\./((?:examples|benchmarks)/\w+\.py)\)", r"](\1.txt)", markdown)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Leave out the page for wrong addresses, whose links hold only at a server's root."""
    return "" if template_name == "404.html" else output_content


def _without_folder(source: str) -> str:
    """A page of the top level, its links as they are from the folder of the pages."""
    text = (_ROOT / source).read_text(encoding="utf-8")
    for name in ("CHANGELOG", "SECURITY"):
        text = text.replace(f"]({name}.md)", f"]({name.lower()}.md)")
    return re.sub(r'(\]\(|src=")docs/', r"\1", text)
