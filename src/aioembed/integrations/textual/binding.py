"""Handles bound to a node's reactive attributes, and held as long as the node is mounted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from textual.dom import DOMNode
from textual.message import Message
from textual.reactive import reactive

from aioembed import ModelState
from aioembed.handle import EmbeddingHandle

__all__ = ["ModelMixin", "StateChanged"]

Model = EmbeddingHandle[Any]


class StateChanged(Message):
    """A model that a node holds has another state.

    Changes that fall together are told once, with the latest state.

    Attributes:
        model: The handle.
        state: Its state.
    """

    def __init__(self, model: Model, state: ModelState) -> None:
        super().__init__()
        self.model = model
        self.state = state


class ModelMixin(DOMNode):
    """For an `App`, a `Screen` or a widget that holds models; put it before that class.

        class Photos(ModelMixin, App[None]):
            def on_mount(self) -> None:
                self.use_model(ImageEmbeddings(GIST_512))

            def watch_model_state(self, state: ModelState) -> None: ...

            def on_state_changed(self, event: StateChanged) -> None: ...

    Attributes:
        model_state: The state of the model that was given to `use_model`.
    """

    model_state: reactive[ModelState] = reactive(ModelState(), repaint=False)

    def use_model(self, model: Model, attribute: str = "model_state") -> None:
        """Enter a model, bind it, and close it when this node is unmounted.

        Its loading begins unless it was made with `prevent_load`. An error of the load is in the
        state.

        Args:
            model: A handle that nobody has entered.
            attribute: The reactive attribute that follows its state; give another one for a
                second model.
        """
        unsubscribe = self.bind_model(model, attribute)
        leave = asyncio.Event()
        holding = asyncio.create_task(_hold(model, leave))
        _holdings(self).append((unsubscribe, leave, holding))

    def bind_model(self, model: Model, attribute: str = "model_state") -> Callable[[], None]:
        """Let a reactive attribute follow a model's state, and post `StateChanged` with it.

        Args:
            model: Anyone's handle.
            attribute: Name of the reactive attribute.

        Returns:
            A function that ends it; not needed for a model that outlives this node no longer.
        """
        is_scheduled = False

        def deliver() -> None:
            nonlocal is_scheduled
            is_scheduled = False
            setattr(self, attribute, model.state)
            self.post_message(StateChanged(model, model.state))

        def schedule() -> None:
            nonlocal is_scheduled
            if not is_scheduled:
                is_scheduled = True
                self.call_next(deliver)

        deliver()
        return model.subscribe(schedule)

    async def on_unmount(self) -> None:
        """Close the models, and return when they are closed."""
        holdings = _holdings(self)
        for _, leave, _ in holdings:
            leave.set()
        for unsubscribe, _, holding in holdings:
            await holding
            unsubscribe()
        holdings.clear()


_Holding = tuple[Callable[[], None], asyncio.Event, "asyncio.Task[None]"]


def _holdings(node: ModelMixin) -> list[_Holding]:
    """A node's own list, made when it is needed, as mixins' constructors may not be called."""
    found: list[_Holding] = node.__dict__.setdefault("_model_holdings", [])
    return found


async def _hold(model: Model, leave: asyncio.Event) -> None:
    """Not a Textual worker: those are cancelled at the end, and nobody waits for them."""
    async with model:
        await leave.wait()
