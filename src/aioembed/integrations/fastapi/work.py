"""The work of a request: its inputs embedded, a few at a time, and vectors encoded."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import anyio
import numpy as np

from aioembed.errors import AioembedError, InvalidModelOutput, InvalidUserInput, shorten
from aioembed.image import ImageEmbeddings
from aioembed.images import SourcePolicy, read_encoded
from aioembed.images import fetch as _fetch  # noqa: F401  # loads httpx now, not on the loop
from aioembed.models import Modality
from aioembed.similarity import Embedding, Embeddings, quantize
from aioembed.text import TextEmbeddings

from .models import Models, Served
from .problems import Problem, code_of, status_of, too_many_inputs, words_of
from .route import Server
from .schemas import Item, OutputType, Truncation

__all__ = ["Embedded", "Work", "encoded"]

_WEB = re.compile(r"https?://\S{1,8192}", re.IGNORECASE)
_DATA = re.compile(r"data:image/", re.IGNORECASE)
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,31}:", re.IGNORECASE)
_LEAST_BASE64 = 32
_HEAD_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of a request's inputs.

    Attributes:
        vectors: float32 `(n, embedding_dim)`, each of length 1.
        model: The name of the model.
        tokens: Of all texts, as many as the model reads.
        images: How many of the inputs were images.
    """

    vectors: Embeddings
    model: str
    tokens: int
    images: int


class Work:
    """Embeds the inputs of requests.

    Args:
        server: Whose limits hold.
        policy: What images may be and where they may come from.
    """

    def __init__(self, server: Server, policy: SourcePolicy) -> None:
        self._server = server
        self._policy = policy

    async def embed(
        self,
        models: Models,
        items: Sequence[Item],
        *,
        param: str,
        model: str | None = None,
        modality: Modality | None = None,
        dimensions: int | None = None,
        truncate: Truncation | None = None,
        single: bool = False,
    ) -> Embedded:
        """Embed texts and images, each by the model of its kind under one name.

        Args:
            models: To choose from.
            items: At least one.
            param: The field they came in.
            model: A name; by default the first that fits.
            modality: What items are that could be either.
            dimensions: How many values the client asks for.
            truncate: What becomes of texts that are too long; by default as the model is set.
            single: Whether the field holds one input and not a list.

        Raises:
            Problem: Too many, or some are at fault; it names each. Or the model is not ready.
            AioembedError: The model could not do it.
        """
        most = self._server.limits.max_inputs
        if len(items) > most:
            raise too_many_inputs(len(items), most, param=param)
        towers = _towers(models, model, modality, items)
        chosen = [
            _tower(models, towers, one, modality, f"{param}[{index}]")
            for index, one in enumerate(items)
        ]
        for one in dict.fromkeys(chosen):
            models.check_ready(one)
            await _check_dimensions(dimensions, one)
        text_model = _name_of(models, "text")
        tokens = 0
        cutting: dict[str, Any] = {}
        if truncate is not None:
            cutting["truncate"] = "silent" if truncate == "end" else "error"

        def count(more: int) -> None:
            nonlocal tokens
            tokens += more

        async def embed(job: tuple[Item, Served]) -> Embedding:
            item, tower = job
            if tower.modality == "image":
                return await self._image(tower, item.value, text_model)
            handle = cast("TextEmbeddings", tower.handle)  # its modality says so
            embedding = handle.forward(str(item.value), on_tokens=count, **cutting)
            return await self._counted(tower, embedding)

        jobs = list(zip(items, chosen, strict=True))
        vectors = await self._each(jobs, embed, param, single=single)
        images = sum(one.modality == "image" for one in chosen)
        return Embedded(vectors, chosen[0].name, tokens, images)

    async def admit(self, image: str | bytes) -> bytes:
        """Return an image's bytes once the policy has let it pass.

        Args:
            image: Its bytes, or what names or holds it.

        Raises:
            InvalidUserInput: It has not.
        """
        return await self._admit(_image_source(image))

    async def _admit(self, source: str | bytes) -> bytes:
        if _is_fetched(source):
            with self._server.load.fetch():
                return await read_encoded(source, policy=self._policy)
        return await read_encoded(source, policy=self._policy)

    async def _image(self, tower: Served, image: str | bytes, text_model: str | None) -> Embedding:
        model = cast("ImageEmbeddings", tower.handle)
        source = _image_source(image, text_model)
        if _is_fetched(source) or model.source_policy != self._policy:
            source = await self._admit(source)
        return await self._counted(tower, model.forward(source))

    async def _counted(self, tower: Served, embedding: Awaitable[Embedding]) -> Embedding:
        outcome = "cancelled"
        try:
            vector = await embedding
            outcome = "succeeded"
        except Exception:
            outcome = "failed"
            raise
        finally:
            counter = self._server.metrics.embeddings
            counter.labels(tower.name, tower.modality, outcome).inc()
        return vector

    async def _each(
        self,
        jobs: Sequence[tuple[Item, Served]],
        embed: Callable[[tuple[Item, Served]], Awaitable[Embedding]],
        param: str,
        *,
        single: bool,
    ) -> Embeddings:
        vectors: dict[int, Embedding] = {}
        faults: dict[int, AioembedError] = {}
        failure: list[Exception] = []
        todo = iter(enumerate(jobs))

        async def work(give_up: Callable[[], object]) -> None:
            for index, job in todo:
                try:
                    vectors[index] = await embed(job)
                except (InvalidUserInput, InvalidModelOutput) as exc:
                    faults[index] = exc.with_traceback(None)  # which refers to this frame
                except (AioembedError, Problem) as exc:
                    failure.append(exc)
                    give_up()
                    return

        async with anyio.create_task_group() as group:
            for _ in range(min(len(jobs), self._server.limits.inputs_at_once)):
                group.start_soon(work, group.cancel_scope.cancel)
        if failure:
            raise failure.pop()
        if faults:
            raise faulty(faults, param, single=single)
        return np.stack([vectors[index] for index in range(len(jobs))])


def encoded(
    vectors: Embeddings, output: OutputType
) -> list[list[float]] | list[list[int]] | list[str]:
    """Return vectors as JSON has them.

    Args:
        vectors: float32 `(n, dim)`, each of length 1.
        output: `float` gives numbers, `base64` little-endian float32; the others see `quantize`.
    """
    if output == "float":
        numbers: list[list[float]] = vectors.tolist()
        return numbers
    if output == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    levels: list[list[int]] = quantize(vectors, output).tolist()
    return levels


def faulty(faults: dict[int, AioembedError], param: str, *, single: bool = False) -> Problem:
    """Return the answer to a request some of whose inputs are at fault.

    Args:
        faults: By index.
        param: The field they came in.
        single: Whether the field holds one input and not a list.
    """
    items: list[dict[str, object]] = [
        {"index": index, "code": code_of(error), "message": words_of(error)}
        for index, error in sorted(faults.items())
    ]
    first = min(faults)
    place = param if single else f"{param}[{first}]"
    more = f" ({len(items)} inputs failed; `items` lists them)" if len(items) > 1 else ""
    return Problem(
        status_of(faults[first]),
        f"{place}: {items[0]['message']}{more}",
        code=code_of(faults[first]),
        param=place,
        items=items,
    )


def _towers(
    models: Models, name: str | None, modality: Modality | None, items: Sequence[Item]
) -> dict[Modality, Served]:
    """Return the models that a request may mean, by what they embed."""
    named = models.named(name)
    if name is None:
        wanted = {modality} | {item.modality for item in items if modality is None}
        fitting = [one for one in named if wanted <= {None, one.modality}] or named
        named = [one for one in named if one.name == fitting[0].name]
    return {one.modality: one for one in named}


def _tower(
    models: Models,
    towers: dict[Modality, Served],
    item: Item,
    modality: Modality | None,
    place: str,
) -> Served:
    wanted = item.modality or modality
    if wanted is None:
        wanted = "image" if _is_address(item.value) or "text" not in towers else "text"
    if wanted in towers:
        return towers[wanted]
    name = shorten(next(iter(towers.values())).name)
    fitting = _name_of(models, wanted)
    other = f"name {shorten(fitting)}, which embeds {wanted}s" if fitting else ""
    if wanted == "image" and item.modality is None and modality is None:
        message = (
            f"{place} is the address of an image, and {name} embeds texts: "
            f"{other or 'name a model that embeds images'}, or send "
            '"modality": "text" to embed the address itself'
        )
    elif item.modality is None:
        message = f"{name} embeds no {wanted}s" + (f": {other}" if other else "")
        place = "modality"
    else:
        kind = "an image" if wanted == "image" else "a text"
        embedded = "texts" if wanted == "image" else "images"
        message = (
            f"{place} is {kind}, and {name} embeds {embedded}: {other or 'name another model'}"
        )
    raise Problem(400, message, code="modality_not_supported", param=place)


def _name_of(models: Models, modality: Modality) -> str | None:
    """Return the first model that embeds these, for messages."""
    return next((one.name for one in models if one.modality == modality), None)


def _is_address(value: str | bytes) -> bool:
    """Return whether a string is the URL or the data URI of an image."""
    if isinstance(value, bytes):
        return False
    text = value.strip()
    return bool(_DATA.match(text) or _WEB.fullmatch(text))


def _is_fetched(source: str | bytes) -> bool:
    return isinstance(source, str) and source[:4].lower() == "http"


def _image_source(image: str | bytes, text_model: str | None = None) -> str | bytes:
    """Return an image's URI as it is, and base64 as a data URI, to be decoded in a thread.

    Args:
        image: Its bytes, or what names or holds it.
        text_model: The name that the error suggests for texts.

    Raises:
        InvalidUserInput: A text that is neither.
    """
    if isinstance(image, bytes):
        return image
    text = image.strip()
    if _is_fetched(text) and not _WEB.fullmatch(text):
        raise InvalidUserInput(f"{shorten(text)} is not an http(s) URL of at most 8,192 characters")
    if _URI.match(text) or (text.startswith(("/", "\\", ".")) and "\x00" not in text):
        return text
    head = text[:_HEAD_CHARACTERS]
    if len(text) < _LEAST_BASE64 or " " in head or not head.isascii():
        named = f", or name {shorten(text_model)}, which embeds texts" if text_model else ""
        raise InvalidUserInput(
            f"{shorten(text)} is a text, and the model embeds images: send an image's http(s) "
            f"URL, a data URI, base64 or a file{named}"
        )
    return f"data:;base64,{text}"


async def _check_dimensions(wanted: int | None, served: Served) -> None:
    if wanted is None:
        return
    await served.become_known()
    dim = served.handle.embedding_dim
    if wanted != dim:
        raise Problem(
            400,
            f"{served.name} gives vectors of {dim} values and cannot give {wanted}: leave "
            "dimensions out",
            code="dimensions_not_supported",
            param="dimensions",
        )
