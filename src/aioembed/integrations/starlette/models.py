"""The models that a server has, by name and modality."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aioembed.errors import InvalidConfig, shorten
from aioembed.image import ImageEmbeddings
from aioembed.models import Modality
from aioembed.state import Status
from aioembed.text import TextEmbeddings

from .problems import Problem, code_of
from .schemas import ModelCard, ModelList, ModelSnapshot, StateError, States

__all__ = ["Handle", "ModelsArgument", "Served", "ServedModels", "check_ready"]

Handle = ImageEmbeddings | TextEmbeddings
ModelsArgument = Handle | Iterable[Handle] | Mapping[str, Handle | Iterable[Handle]]
"""One model, several, or models by the name that clients give; the image and the text model of
one checkpoint may share a name."""

_H = TypeVar("_H", ImageEmbeddings, TextEmbeddings)
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """One model under the name that clients give."""

    name: str
    handle: Handle

    @property
    def modality(self) -> Modality:
        """What it embeds."""
        return self.handle.modality

    def snapshot(self, *, with_reason: bool) -> ModelSnapshot:
        """Return what it is doing; the reason of a failed load may name files of the server."""
        state = self.handle.state
        error = None
        if state.error is not None:
            message = str(state.error) if with_reason else "the server's log says why"
            error = StateError(code=code_of(state.error), message=message)
        return ModelSnapshot(
            name=self.name,
            modality=self.modality,
            is_ready=state.is_ready,
            is_generating=state.is_generating,
            error=error,
            **state.model_dump(exclude={"error"}),
        )


class ServedModels:
    """Finds models by name and modality.

    Args:
        models: One handle, several, or handles by name.

    Raises:
        InvalidConfig: No model, or two of one name and modality.
    """

    def __init__(self, models: ModelsArgument) -> None:
        self._models: dict[tuple[str, Modality], Served] = {}
        self._created = int(time.time())
        for name, handle in _named(models):
            key = (name, handle.modality)
            if key in self._models:
                raise InvalidConfig(f"two {key[1]} models are named {name!r}: give them names")
            self._models[key] = Served(name, handle)
        if not self._models:
            raise InvalidConfig("a server needs at least one model")

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def find(self, name: str | None, modality: Modality | None) -> Served:
        """Return the model that a request names; the first that fits where it names none.

        Raises:
            Problem: There is none.
        """
        named = [one for one in self if name in {None, one.name}]
        fitting = [one for one in named if modality in {None, one.modality}]
        if fitting:
            # A bare string is a text to OpenAI's clients.
            return next((one for one in fitting if one.modality == "text" and name), fitting[0])
        if not named:
            known = ", ".join(dict.fromkeys(one.name for one in self))
            message = f"no model is named {shorten(name)}: known are {known}"
            raise Problem(404, message, code="model_not_found", param="model")
        what = shorten(name) if name else "no model here"
        message = f"{what} embeds {'no ' if name else ''}{modality}s"
        raise Problem(400, message, code="modality_not_supported", param="modality")

    def image(self, name: str | None) -> tuple[str, ImageEmbeddings]:
        """Return an image model that is ready, and its name.

        Raises:
            Problem: There is none of that name, or it is not ready.
        """
        return self._ready(name, "image", ImageEmbeddings)

    def text(self, name: str | None) -> tuple[str, TextEmbeddings]:
        """Return a text model that is ready, and its name.

        Raises:
            Problem: There is none of that name, or it is not ready.
        """
        return self._ready(name, "text", TextEmbeddings)

    def _ready(self, name: str | None, modality: Modality, kind: type[_H]) -> tuple[str, _H]:
        served = self.find(name, modality)
        check_ready(served)
        handle: Any = served.handle
        assert isinstance(handle, kind)  # noqa: S101  # its modality says so
        return served.name, handle

    def cards(self) -> ModelList:
        """Return the list of models as OpenAI has it."""
        return ModelList(data=[self.card(name) for name in dict.fromkeys(m.name for m in self)])

    def card(self, name: str) -> ModelCard:
        """Return one model as OpenAI has it.

        Raises:
            Problem: There is none of that name.
        """
        first = self.find(name, None)
        same = [one for one in self if one.name == name]
        state = first.handle.state
        known = state.is_ready or first.handle.spec.embedding_dim is not None
        return ModelCard(
            id=name,
            created=self._created,
            modalities=[one.modality for one in same],
            embedding_dim=first.handle.embedding_dim if known else None,
        )

    def states(self, *, is_stopping: bool, with_reasons: bool = True) -> States:
        """Return what every model is doing."""
        snapshots = [one.snapshot(with_reason=with_reasons) for one in self]
        ready = not is_stopping and all(one.is_ready for one in snapshots)
        return States(is_ready=ready, is_stopping=is_stopping, models=snapshots)


def check_ready(served: Served) -> None:
    """Refuse a request whose model is not loaded.

    Raises:
        Problem: It is not; Retry-After says when it may be.
    """
    state = served.handle.state
    if state.is_ready:
        return
    details = f": {state.error}" if state.error else ""
    if state.status is Status.DOWNLOADING:
        details = f", {state.download_progress:.0%} are there"
    wait = max(1.0, min(state.download_eta or 1.0, _LONGEST_WAIT))
    raise Problem(
        503,
        f"the model {served.name} is {state.status}{details}: /readyz tells when it is ready",
        code=f"model_{state.status}",
        param="model",
        headers={"Retry-After": f"{wait:.0f}"},
    )


def _named(models: ModelsArgument) -> Iterator[tuple[str, Handle]]:
    if isinstance(models, Mapping):
        for name, given in models.items():
            yield from ((name, handle) for handle in _several(given))
    else:
        yield from ((handle.spec.name, handle) for handle in _several(models))


def _several(given: Handle | Iterable[Handle]) -> Iterable[Handle]:
    return (given,) if isinstance(given, ImageEmbeddings | TextEmbeddings) else given
