"""Handles bound to a node's reactive attributes, and open as long as the node is mounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.message import Message
from textual.reactive import reactive

from aioembed import ModelState
from aioembed.handle import EmbeddingHandle

__all__ = ["ModelMixin", "StateChanged"]

Model = EmbeddingHandle[Any]

if TYPE_CHECKING:
    from textual.dom import DOMNode
else:  # of two base classes that are nodes, Textual takes the default CSS of the first alone
    DOMNode = object


class StateChanged(Message):
    """Posted to a node when the state of a model that it is bound to has changed.

    Changes within one turn of the node's message loop are posted once, with the latest state.

    Attributes:
        model: The handle.
        state: Its state.
    """

    def __init__(self, model: Model, state: ModelState) -> None:
        super().__init__()
        self.model = model
        self.state = state


class ModelMixin(DOMNode):
    """For an `App`, a `Screen` or a widget that owns models; put it before that class.

        class Photos(ModelMixin, App[None]):
            def on_mount(self) -> None:
                self.use_model(ImageEmbeddings())

            def watch_model_state(self, state: ModelState) -> None: ...

            def on_state_changed(self, event: StateChanged) -> None: ...

    Watchers and handlers are not called once the node is being unmounted, so they may query the
    node's children.

    Attributes:
        model_state: The state of the model that was given to `use_model`.
    """

    model_state: reactive[ModelState] = reactive(ModelState(), repaint=False)

    def use_model(self, model: Model, attribute: str = "model_state") -> None:
        """Open a model, bind it, and close it when this node is unmounted.

        It starts to load unless it was made with `prevent_load`. An error of the load is in the
        state.

        Args:
            model: A handle that is not open.
            attribute: The reactive attribute that follows its state; give another one for a
                second model.
        """
        unsubscribe = self.bind_model(model, attribute)
        self._used_models.append((model, unsubscribe))
        self.call_next(model.__aenter__)

    def bind_model(self, model: Model, attribute: str = "model_state") -> Callable[[], None]:
        """Let a reactive attribute follow a model's state, and post `StateChanged` with it.

        Args:
            model: A handle that is opened and closed elsewhere.
            attribute: Name of the reactive attribute.

        Returns:
            A function that ends it. It needs to be called only if the model outlives this node.
        """
        is_scheduled = False

        def deliver() -> None:
            nonlocal is_scheduled
            is_scheduled = False
            if self.is_running:
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
        for model, unsubscribe in self._used_models:
            unsubscribe()
            await model.aclose()
        self._used_models.clear()

    @property
    def _used_models(self) -> list[tuple[Model, Callable[[], None]]]:
        """Made when it is needed, since a mixin's constructor may not be called."""
        found: list[tuple[Model, Callable[[], None]]]
        found = self.__dict__.setdefault("_models_in_use", [])
        return found
