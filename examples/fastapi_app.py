"""Embeddings in a FastAPI application: added in four lines, then used in routes and a job.

Run it with `granian --interface asgi fastapi_app:app` from this folder, then try

    curl -F input=@cat.jpg http://127.0.0.1:8000/embed/v1/embeddings
    curl -F image=@cat.jpg http://127.0.0.1:8000/photos
    curl http://127.0.0.1:8000/photos
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Annotated

import numpy as np
from fastapi import BackgroundTasks, Depends, FastAPI, File, HTTPException
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.errors import AioembedError, InvalidUserInput
from aioembed.integrations.fastapi import Models, lifespan, router

# The four lines: a model is loaded before the application starts, and closed when it stops.
# Without `wait` it starts immediately, and answers 503 until the model is loaded.
models = Models(lambda: ImageEmbeddings(source_policy=SourcePolicy.untrusted()))
app = FastAPI(title="Photo album", lifespan=lifespan(models, wait=True))
app.include_router(router(models), prefix="/embed")


@dataclass
class Album:
    """Photos by number; a number is never reused, even if its photo fails."""

    photos: dict[int, NDArray[np.float32] | None] = field(default_factory=dict)
    numbers: count[int] = field(default_factory=count)


album = Album()


def image_model() -> ImageEmbeddings:
    """Return the model for the routes; tests replace it with `app.dependency_overrides`."""
    return models.image()


Model = Annotated[ImageEmbeddings, Depends(image_model)]


@app.post("/photos", status_code=202)
async def add_photo(
    image: Annotated[bytes, File()], jobs: BackgroundTasks, embeddings: Model
) -> dict[str, int]:
    """Store a photo; it is embedded after the response."""
    number = next(album.numbers)
    album.photos[number] = None
    jobs.add_task(_index, number, image, embeddings)
    return {"photo": number}


@app.get("/photos")
async def list_photos() -> dict[int, str]:
    """List the photos, and which of them can be searched."""
    return {number: "waiting" if one is None else "indexed" for number, one in album.photos.items()}


@app.post("/search")
async def search(image: Annotated[bytes, File()], embeddings: Model) -> dict[int, float]:
    """Return the cosine similarity of each photo to an image."""
    try:
        wanted = await embeddings.forward(image, timeout=30)
    except InvalidUserInput as exc:
        raise HTTPException(400, str(exc)) from exc
    except AioembedError as exc:
        raise HTTPException(503, str(exc)) from exc
    return {number: float(one @ wanted) for number, one in album.photos.items() if one is not None}


async def _index(number: int, image: bytes, embeddings: ImageEmbeddings) -> None:
    try:
        album.photos[number] = await embeddings.forward(image)
    finally:
        if album.photos[number] is None:  # it failed
            del album.photos[number]
