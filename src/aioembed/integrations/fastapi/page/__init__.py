"""The page that shows a server at work: static files, no build step, no other origin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from ..route import EmbeddingRoute

__all__ = ["add_page"]

_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/heatmap.js": ("heatmap.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(routes: APIRouter, route_class: type[EmbeddingRoute]) -> None:
    """Add the page and its files to a router.

    Args:
        routes: To be added to.
        route_class: Of routes that answer everyone.
    """
    for path, (name, kind) in _FILES.items():
        routes.add_api_route(
            path,
            _file(name, kind),
            response_class=Response,
            include_in_schema=False,
            route_class_override=route_class,
        )


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def respond() -> Response:
        return FileResponse(_FOLDER / name, headers=_HEADERS, media_type=kind)

    return respond
