"""What type checkers make of the public interface: read by mypy and pyright, never run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aioembed import (
    EFFICIENTNET_LITE0,
    MODELS,
    CallTiming,
    Classification,
    EmbeddingSpace,
    EmbeddingStream,
    Err,
    ImageEmbeddings,
    LabelScore,
    ModelSpec,
    ModelState,
    Ok,
    Preprocessing,
    Queueing,
    SourcePolicy,
    Statistics,
    Status,
    TextEmbeddings,
    Threads,
    ZeroShotClassifier,
    classify,
    cosine_similarity,
    dot_product,
    load_image,
    use_image_embedder,
    use_image_embeddings,
    use_text_embedder,
    use_text_embeddings,
)
from aioembed.errors import AioembedError, BatchItemFailed, ForwardTimeout, InvalidConfig

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Floats = NDArray[np.float32] | NDArray[np.float64]


async def handles_keep_their_type(path: Path) -> None:
    async with ImageEmbeddings(EFFICIENTNET_LITE0) as image:
        assert_type(image, ImageEmbeddings)
        assert_type(image.spec, ModelSpec)
    async with TextEmbeddings(path, truncate="error") as text:
        assert_type(text, TextEmbeddings)
    assert_type(use_image_embeddings("efficientnet-lite0"), ImageEmbeddings)
    assert_type(use_image_embedder("efficientnet-lite0"), ImageEmbeddings)
    assert_type(use_text_embedder(path), TextEmbeddings)
    assert_type(use_text_embeddings(path, True), TextEmbeddings)
    assert_type(await image.load(), None)
    assert_type(await image.aclose(), None)


async def images_of_every_kind_become_vectors(
    model: ImageEmbeddings, place: os.PathLike[str], array: NDArray[np.uint8], picture: Image.Image
) -> None:
    assert_type(await model.forward("https://example.org/cat.jpg"), Vector)
    assert_type(await model.forward(place), Vector)
    assert_type(await model.forward(b"bytes", timeout=1.5), Vector)
    assert_type(await model.embed(picture), Vector)
    assert_type(await model.forward_batch([array, "cat.jpg", picture]), Matrix)
    await model.forward(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def texts_become_vectors(model: TextEmbeddings) -> None:
    assert_type(await model.forward("a cat"), Vector)
    assert_type(await model.count_tokens("a cat"), int)
    await model.forward(b"a cat")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def states_are_values(model: ImageEmbeddings) -> None:
    assert_type(model.state, ModelState)
    assert_type(model.state.status, Status)
    assert_type(model.state.is_ready, bool)
    assert_type(model.state.download_progress, float)
    assert_type(model.state.error, AioembedError | None)
    assert_type(model.states(), AsyncIterator[ModelState])
    assert_type(model.subscribe(lambda: None), Callable[[], None])
    assert_type(await model.wait_for(Status.READY), ModelState)
    assert_type(await model.wait_for(lambda state: state.is_ready), ModelState)
    assert_type(model.statistics(), Statistics)


async def streams_give_their_keys_back(model: ImageEmbeddings, paths: Iterator[Path]) -> None:
    stream = model.embed_stream(paths)
    assert_type(stream, EmbeddingStream[int])
    async with stream:
        async for result in stream:
            if isinstance(result, Ok):
                assert_type(result, Ok[int])
                assert_type(result.embedding, Vector)
            else:
                assert_type(result, Err[int])
                assert_type(result.error, AioembedError)
    named = model.embed_stream(((path.name, path) for path in paths), keyed=True)
    assert_type(named, EmbeddingStream[str])


async def options_take_what_they_say() -> None:
    def watch(timing: CallTiming) -> None: ...

    ImageEmbeddings(
        EFFICIENTNET_LITE0, on_call=watch, threads=2, source_policy=SourcePolicy.trusted()
    )
    ImageEmbeddings(threads=Threads(preprocess=4), queueing=Queueing(max_pending=1))
    Queueing(max_pending="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Threads(decode=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def functions_return_values(model: ImageEmbeddings, text: TextEmbeddings) -> None:
    policy = SourcePolicy.untrusted()
    assert_type(MODELS["efficientnet-lite0"], ModelSpec)
    assert_type(await load_image("cat.jpg", policy=policy), NDArray[np.uint8])
    assert_type(model.space, EmbeddingSpace)
    classifier = ZeroShotClassifier(["cat"], image_model=model, text_model=text)
    assert_type(await classifier.classify("cat.jpg"), Classification)
    found = await classify("cat.jpg", ["cat", "dog"], image_model=model, text_model=text)
    assert_type(found.best, LabelScore)
    assert_type(found.ranked(), list[LabelScore])


def similarities_have_the_shape_of_their_operands(
    vector: Vector, matrix: Matrix, array: NDArray[np.float64]
) -> None:
    assert_type(cosine_similarity(vector, vector), float)
    assert_type(cosine_similarity([0.6, 0.8], vector), float)
    assert_type(cosine_similarity(matrix, vector), Floats)
    assert_type(cosine_similarity(vector, matrix), Floats)
    assert_type(dot_product([vector, vector], matrix), Floats)
    assert_type(dot_product([[1, 2]], [1, 2]), Floats | float)
    either: Floats | float = cosine_similarity(array, array)
    del either


def values_are_typed_where_they_are_made() -> None:
    policy = SourcePolicy(schemes=frozenset(("https",)), max_bytes=1, max_pixels=1, max_dimension=1)
    assert_type(policy.allow(timeout=3), SourcePolicy)
    SourcePolicy(scheme="https")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Preprocessing(height=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ModelSpec(
        name="x",
        source="x.pte",
        modality="sound",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )


def errors_say_more(error: BatchItemFailed | ForwardTimeout | InvalidConfig) -> None:
    assert_type(error.code, int)
    if isinstance(error, BatchItemFailed):
        assert_type(error.index, int)
        assert_type(error.error, AioembedError)
    if isinstance(error, ForwardTimeout):
        as_builtin: TimeoutError = error
        del as_builtin
