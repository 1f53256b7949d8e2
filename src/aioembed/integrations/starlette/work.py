"""What requests have done: inputs embedded under the server's policy, a few at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from aioembed.errors import AioembedError, ForwardTimeout, InvalidModelOutput, InvalidUserInput
from aioembed.image import ImageEmbeddings
from aioembed.images import SourcePolicy, read_encoded
from aioembed.images import fetching as _fetching  # noqa: F401  # now, not on the loop later
from aioembed.text import TextEmbeddings

from .limits import ServerLimits
from .problems import Problem, code_of, status_of, too_many_inputs
from .schemas import ItemError

__all__ = ["Work", "while_connected"]

_R = TypeVar("_R")
Matrix = NDArray[np.float32]


class Work:
    """Embeds the inputs of requests.

    Args:
        policy: What images may be and where they may come from.
        limits: How much one request may ask for.
    """

    def __init__(self, policy: SourcePolicy, limits: ServerLimits) -> None:
        self._policy = policy
        self._limits = limits

    async def images(
        self, model: ImageEmbeddings, images: Sequence[str | bytes], *, param: str
    ) -> Matrix:
        """Embed images.

        Args:
            model: Ready.
            images: URIs, base64 or bytes.
            param: The field they came in.

        Returns:
            float32 `(n, embedding_dim)`.

        Raises:
            Problem: Too many, or some are at fault; it names each.
            AioembedError: The model could not do it.
        """
        model_checks = model.source_policy == self._policy

        async def embed(image: str | bytes) -> NDArray[np.float32]:
            return await model.forward(image if model_checks else await self.admit(image))

        return await self._each(images, embed, param)

    async def texts(self, model: TextEmbeddings, texts: Sequence[str], *, param: str) -> Matrix:
        """Embed texts; as `images`."""
        return await self._each(texts, model.forward, param)

    async def count_tokens(self, model: TextEmbeddings, texts: Sequence[str]) -> int:
        """Return how many tokens of texts the model reads."""
        return sum([await model.count_tokens(text) for text in texts])

    async def admit(self, image: str | bytes) -> bytes:
        """Return an image's bytes once the policy has let it pass.

        Raises:
            InvalidUserInput: It has not.
        """
        return await read_encoded(image, policy=self._policy)

    def check_count(self, count: int, *, param: str) -> None:
        """Refuse more inputs than the limit.

        Raises:
            Problem: There are more.
        """
        most = self._limits.max_inputs
        if count > most:
            raise too_many_inputs(count, most, param=param)

    async def _each(
        self,
        inputs: Sequence[_R],
        embed: Callable[[_R], Awaitable[NDArray[np.float32]]],
        param: str,
    ) -> Matrix:
        self.check_count(len(inputs), param=param)
        if len(inputs) == 1:
            return await _alone(inputs[0], embed, param)
        todo = iter(enumerate(inputs))
        vectors: dict[int, NDArray[np.float32]] = {}
        faults: dict[int, AioembedError] = {}
        failure: list[AioembedError] = []

        async def work() -> None:
            for index, one in todo:
                try:
                    vectors[index] = await embed(one)
                except (InvalidUserInput, InvalidModelOutput) as exc:
                    faults[index] = exc.with_traceback(None)  # which refers to this frame
                except AioembedError as exc:
                    failure.append(exc)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(min(len(inputs), self._limits.inputs_at_once)):
                group.start_soon(work)
        if failure:
            raise failure.pop()
        if faults:
            raise _faulty(faults, param)
        return np.stack([vectors[index] for index in range(len(inputs))])


async def _alone(
    one: _R, embed: Callable[[_R], Awaitable[NDArray[np.float32]]], param: str
) -> Matrix:
    try:
        return (await embed(one))[np.newaxis]
    except (InvalidUserInput, InvalidModelOutput) as exc:
        raise _faulty({0: exc}, param, single=True) from exc


async def while_connected(
    request: Request, work: Callable[[], Awaitable[_R]], *, timeout: float
) -> _R:
    """Do a request's work, and cancel it when the client goes away or it takes too long.

    Args:
        request: Its body has been read.
        work: What is to be done.
        timeout: Seconds that it may take.

    Raises:
        ClientDisconnect: The client went away.
        ForwardTimeout: It took longer.
        AioembedError: As the work.
    """
    results: list[_R] = []
    errors: list[Exception] = []
    gone = False
    watching = anyio.CancelScope()

    async def watch() -> None:
        nonlocal gone
        with watching:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.cancel_scope.deadline = anyio.current_time() + timeout
        group.start_soon(watch)
        try:
            results.append(await work())
        except Exception as exc:  # noqa: BLE001  # raised again outside of the group
            errors.append(exc)
        # A task that ends by its group's cancellation is a cycle that holds the request's body.
        watching.cancel()
    if results:
        return results[0]
    if errors:
        raise errors.pop()  # its traceback refers to this frame, which must not refer to it
    if gone:
        raise ClientDisconnect
    raise ForwardTimeout(f"the request took longer than {timeout:g} s: send fewer inputs")


def _faulty(faults: dict[int, AioembedError], param: str, *, single: bool = False) -> Problem:
    items = tuple(
        ItemError(index=index, code=code_of(error), message=str(error))
        for index, error in sorted(faults.items())
    )
    first = items[0]
    place = param if single else f"{param}[{first.index}]"
    more = f" ({len(items)} inputs failed; `items` lists them)" if len(items) > 1 else ""
    return Problem(
        status_of(faults[first.index]),
        f"{place}: {first.message}{more}",
        code=first.code,
        param=place,
        items=items,
    )
