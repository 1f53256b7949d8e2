"""The router: everything put together, to be mounted in any ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.middleware import Middleware
from starlette.routing import Mount, Route, Router

from aioembed import __version__
from aioembed.images import SourcePolicy

from .answers import Answers
from .drain import Drain
from .edge import Edge
from .endpoints import Endpoints
from .keys import ApiKey, KeyedRoute
from .limits import ServerLimits
from .metrics import Metrics
from .models import ModelsArgument, ServedModels
from .openapi import openapi_document
from .page import page_routes
from .work import Work

__all__ = ["lifespan", "router"]

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def lifespan(models: ModelsArgument) -> Lifespan:
    """Return an application's `lifespan=` that loads models in the background and closes them.

    The application serves at once; `/readyz` tells when the models are loaded.

    Args:
        models: A handle, several, or handles by name.

    Raises:
        InvalidConfig: No model, or two of one name and modality.

    Example:
        ```python
        model = ImageEmbeddings()
        app = FastAPI(lifespan=lifespan(model))
        app.mount("/embed", router(model))
        ```
    """
    served = ServedModels(models)

    @asynccontextmanager
    async def living(_app: object) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            for one in served:
                await stack.enter_async_context(one.handle)
            yield

    return living


def router(
    models: ModelsArgument,
    *,
    policy: SourcePolicy | None = None,
    limits: ServerLimits | None = None,
    api_key: str | None = None,
    page: bool = True,
    drain: Drain | None = None,
) -> Router:
    """Return the server's routes, to be mounted in a Starlette or FastAPI application.

    Args:
        models: As for `lifespan`, which loads them.
        policy: What images may be and where they may come from, `SourcePolicy.untrusted()` by
            default. The models' own policies hold too.
        limits: How much one request may ask for.
        api_key: Wanted as `Authorization: Bearer` for everything under `/v1/` and for
            `/metrics`; None lets everyone in.
        page: Whether there is a page at `/`.
        drain: Shared with the server that stops it.

    Raises:
        InvalidConfig: No model, two of one name and modality, or an empty key.
    """
    key = ApiKey(api_key)
    limits = limits or ServerLimits()
    drain = drain or Drain()
    served = ServedModels(models)
    metrics = Metrics(served)
    endpoints = Endpoints(
        served,
        answers=Answers(served, Work(policy or SourcePolicy.untrusted(), limits)),
        key=key,
        limits=limits,
        drain=drain,
        metrics=metrics,
        document=openapi_document(version=__version__, has_key=key.is_wanted),
    )
    routes = _routes(endpoints, key)
    edge = Middleware(
        Edge,
        limits=limits,
        drain=drain,
        metrics=metrics,
        paths=frozenset(route.path for route in routes),
    )
    shown: list[Route | Mount] = [*routes, *(page_routes() if page else ())]
    return Router(shown, redirect_slashes=False, middleware=[edge])


def _routes(endpoints: Endpoints, key: ApiKey) -> list[Route]:
    keyed = [
        KeyedRoute("/v1/embeddings", endpoints.embeddings, methods=["POST"]),
        KeyedRoute("/v1/similarity", endpoints.similarity, methods=["POST"]),
        KeyedRoute("/v1/classify", endpoints.classify, methods=["POST"]),
        KeyedRoute("/v1/models", endpoints.list_models),
        KeyedRoute("/v1/models/{name:path}", endpoints.show_model),
        KeyedRoute("/v1/state", endpoints.state),
        KeyedRoute("/v1/state/stream", endpoints.state_stream),
        KeyedRoute("/metrics", endpoints.metrics),
    ]
    for route in keyed:
        route.key = key
    return [
        *keyed,
        Route("/healthz", endpoints.healthz),
        Route("/readyz", endpoints.readyz),
        Route("/openapi.json", endpoints.openapi),
    ]
