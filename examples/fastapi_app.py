"""Embeddings in a FastAPI application: three lines, then a route and a background job of its own.

Run it with `uvicorn fastapi_app:app` from this folder, then try

    curl -F input=@cat.jpg http://127.0.0.1:8000/embed/v1/embeddings
    curl -F image=@cat.jpg http://127.0.0.1:8000/photos
    curl http://127.0.0.1:8000/photos
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import BackgroundTasks, Depends, FastAPI, File, HTTPException
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.errors import AioembedError, InvalidUserInput
from aioembed.integrations.starlette import lifespan, router

# The three lines: the model loads when the application starts and is closed when it stops.
model = ImageEmbeddings(source_policy=SourcePolicy.untrusted())
app = FastAPI(title="Photo album", lifespan=lifespan(model))
app.mount("/embed", router(model))

_photos: dict[int, NDArray[np.float32] | None] = {}


def image_model() -> ImageEmbeddings:
    """What routes depend on; tests put another one into `app.dependency_overrides`."""
    return model


Model = Annotated[ImageEmbeddings, Depends(image_model)]


@app.post("/photos", status_code=202)
async def add_photo(
    image: Annotated[bytes, File()], jobs: BackgroundTasks, embeddings: Model
) -> dict[str, int]:
    """Take a photo; it is embedded after the answer."""
    number = len(_photos)
    _photos[number] = None
    jobs.add_task(_index, number, image, embeddings)
    return {"photo": number}


@app.get("/photos")
async def list_photos() -> dict[int, str]:
    """Tell which photos can be searched."""
    return {number: "waiting" if one is None else "indexed" for number, one in _photos.items()}


@app.post("/search")
async def search(image: Annotated[bytes, File()], embeddings: Model) -> dict[int, float]:
    """Return the cosine similarity of each photo to an image."""
    try:
        wanted = await embeddings.forward(image, timeout=30)
    except InvalidUserInput as exc:
        raise HTTPException(400, str(exc)) from exc
    except AioembedError as exc:
        raise HTTPException(503, str(exc)) from exc
    return {number: float(one @ wanted) for number, one in _photos.items() if one is not None}


async def _index(number: int, image: bytes, embeddings: ImageEmbeddings) -> None:
    try:
        _photos[number] = await embeddings.forward(image)
    except InvalidUserInput:
        del _photos[number]
