"""The routes of a server, for `include_router`, and as an application to be mounted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, aclosing
from typing import Annotated, Any

import anyio
import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from aioembed import __version__
from aioembed.errors import IncompatibleSpaces, InvalidUserInput
from aioembed.images import SourcePolicy
from aioembed.similarity import cosine_similarity
from aioembed.zero_shot import DEFAULT_PROMPTS, ZeroShotClassifier

from .limits import Load, ServerLimits
from .metrics import CONTENT_TYPE, Metrics
from .models import Models, ModelsArgument, Served
from .page import add_page
from .problems import Problem, problem_of, too_many_inputs
from .route import ApiKeys, EmbeddingRoute, Exchange, OpenRoute, Server, observed
from .schemas import (
    ClassifyRequest,
    ClassifyResponse,
    CohereError,
    CohereRequest,
    CohereResponse,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ErrorBody,
    Health,
    Item,
    ModelCard,
    ModelList,
    SimilarityRequest,
    SimilarityResponse,
    States,
    form_of,
)
from .work import Work, encoded, faulty

__all__ = ["app", "get_models", "lifespan", "router", "stop"]

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
GivenModels = Models | ModelsArgument | Callable[[], ModelsArgument]

_LEAST_STREAM_SECONDS = 0.1
_PING_SECONDS = 15.0
_INLINE_VECTORS = 8


def lifespan(models: GivenModels, *, wait: bool = False) -> Lifespan:
    """Return an application's `lifespan=` that loads models and closes them.

    A model whose load fails is loaded again, after longer and longer waits; the logger
    `aioembed.server` has the states and the reasons.

    Args:
        models: A handle, several, handles by name, or `Models`.
        wait: Start only once all are loaded, and fail where one cannot be. By default the
            application serves immediately, and `/readyz` reports when the models are loaded.

    Raises:
        InvalidConfig: No model, or two of one name and modality.

    Example:
        ```python
        models = Models(lambda: ImageEmbeddings("clip-vit-base-patch32-image"))
        app = FastAPI(lifespan=lifespan(models))
        app.include_router(router(models), prefix="/embed")
        ```
    """
    served = Models.of(models)
    return lambda _app: served.running(wait=wait)


async def get_models(request: Request) -> Models:
    """Return the models of the router that answers.

    What `app.dependency_overrides` replaces in tests, by a function that returns `Models`, or
    handles in any form that `router` takes. FastAPI would call a plain function in a thread.
    """
    exchange: Exchange = request.scope["aioembed"]
    return exchange.server.models


def router(
    models: GivenModels,
    *,
    policy: SourcePolicy | None = None,
    limits: ServerLimits | None = None,
    api_key: str | Iterable[str] | None = None,
    page: bool = True,
    strict: bool = False,
    metrics: Metrics | None = None,
) -> APIRouter:
    """Return the server's routes, for `include_router` of a FastAPI application.

    Any other application mounts `app`: in it, these routes raise InvalidConfig at each request.

    Args:
        models: As for `lifespan`, which loads them.
        policy: What images may be and where they may come from, `SourcePolicy.untrusted()` by
            default. The models' own policies hold too.
        limits: How much requests may ask for.
        api_key: One or several, of which every route but `/healthz`, `/readyz` and the page
            requires one as `Authorization: Bearer`; None requires none.
        page: Whether there is a page at `/`.
        strict: Refuse fields that are not known, which are ignored by default.
        metrics: Where requests are counted; new ones by default.

    Raises:
        InvalidConfig: No model, two of one name and modality, or an empty key.
    """
    limits = limits or ServerLimits()
    server = Server(
        models=Models.of(models),
        limits=limits,
        keys=ApiKeys(api_key),
        metrics=metrics or Metrics(),
        load=Load(limits),
        is_strict=strict,
    )
    return _routes(server, Work(server, policy or SourcePolicy.untrusted()), page=page)


def app(
    models: GivenModels,
    *,
    policy: SourcePolicy | None = None,
    limits: ServerLimits | None = None,
    api_key: str | Iterable[str] | None = None,
    page: bool = True,
    strict: bool = False,
    metrics: Metrics | None = None,
    root_path: str = "",
) -> FastAPI:
    """Return an application to be served, or mounted in any ASGI application.

    Served by itself it loads the models. An application that mounts it has `lifespan(models)`.

    Args:
        models: As for `lifespan`.
        policy: As for `router`.
        limits: As for `router`.
        api_key: As for `router`.
        page: As for `router`.
        strict: As for `router`.
        metrics: As for `router`.
        root_path: Where a proxy serves it, such as `/embed`.

    Raises:
        InvalidConfig: As for `router`.
    """
    served = Models.of(models)
    routes = router(
        served,
        policy=policy,
        limits=limits,
        api_key=api_key,
        page=page,
        strict=strict,
        metrics=metrics,
    )
    route_class: Any = routes.route_class
    server: Server = route_class.server
    made = FastAPI(
        title="aioembed",
        version=__version__,
        description="Embeddings of images and texts.",
        lifespan=lifespan(served),
        root_path=root_path,
        redirect_slashes=False,
        exception_handlers={HTTPException: _answer_in_own_form(server)},
    )
    made.include_router(routes)
    made.state.aioembed = server
    return made


def _answer_in_own_form(server: Server) -> Callable[[Request, Exception], Any]:
    """Answer requests that match no route, in the form of the others."""

    async def answer(request: Request, error: Exception) -> Response:
        exchange = Exchange(server, "openai", "")
        response = problem_of(error).response(exchange.shape, exchange.id)
        exchange.status = response.status_code
        with observed(exchange, request.scope, "other"):
            return response

    return answer


def _routes(server: Server, work: Work, *, page: bool) -> APIRouter:
    keyed = type("KeyedRoute", (EmbeddingRoute,), {"server": server})
    kinds: dict[str, type[EmbeddingRoute]] = {
        "keyed": keyed,
        "images": type("ImageRoute", (keyed,), {"image_field": "input"}),
        "cohere": type("CohereRoute", (keyed,), {"shape": "cohere"}),
        "open": type("ServerOpenRoute", (OpenRoute,), {"server": server}),
    }
    routes = APIRouter(route_class=keyed, redirect_slashes=False)
    bearer = [Security(HTTPBearer(auto_error=False))] if server.keys.are_required else []

    def add(
        path: str,
        endpoint: Callable[..., Any],
        answer: type[BaseModel] | None = None,
        *,
        kind: str = "keyed",
        body: type[BaseModel] | None = None,
        hidden: bool = False,
        response_class: type[Response] = JSONResponse,
    ) -> None:
        extra = None
        if body is not None:
            form = form_of(body, with_image=kind == "images")
            extra = {"requestBody": {"content": form}}
        routes.add_api_route(
            path,
            endpoint,
            response_model=answer,
            route_class_override=kinds[kind],
            responses=_errors(body is not None, CohereError if kind == "cohere" else ErrorBody),
            dependencies=bearer if kind != "open" else [],
            include_in_schema=not hidden,
            methods=["GET" if body is None else "POST"],
            response_class=response_class,
            openapi_extra=extra,
        )

    handlers = _Handlers(server, work)
    for path in ("/v1/embeddings", "/embeddings", "/v1/embeddings/", "/embeddings/"):
        add(
            path,
            handlers.embeddings,
            EmbeddingsResponse,
            kind="images",
            body=EmbeddingsRequest,
            hidden=path.endswith("/"),
        )
    add("/v2/embed", handlers.cohere, CohereResponse, kind="cohere", body=CohereRequest)
    add("/v1/similarity", handlers.similarity, SimilarityResponse, body=SimilarityRequest)
    add("/v1/classify", handlers.classify, ClassifyResponse, body=ClassifyRequest)
    add("/v1/models", handlers.list_models, ModelList)
    add("/v1/models/{name:path}", handlers.show_model, ModelCard)
    add("/v1/state", handlers.state, States)
    add("/v1/state/stream", handlers.state_stream, response_class=_EventStream)
    add("/metrics", handlers.metrics, response_class=_Plain)
    add("/healthz", handlers.healthz, Health, kind="open")
    add("/readyz", handlers.readyz, States, kind="open")
    if page:
        add_page(routes, kinds["open"])
    server.models.on_start(handlers.started)
    return routes


def _errors(has_body: bool, form: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, for the OpenAPI document."""
    listed = {401: "The key is missing or wrong", 404: "No such model", 429: "Too much waits"}
    if has_body:
        listed |= {
            400: "The request is at fault",
            408: "The body came too slowly",
            413: "The body or an image is too large",
            415: "A type of body or image that is not taken",
            422: "An image that cannot be fetched or decoded",
            504: "It took too long",
        }
    listed[503] = "A model is not ready"
    return {status: {"model": form, "description": text} for status, text in listed.items()}


class _EventStream(Response):
    media_type = "text/event-stream"


class _Plain(Response):
    media_type = "text/plain"


class _StateStream(StreamingResponse):
    """A stream that is counted while it is open, and whose generator ends with it."""

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        counted: AbstractContextManager[None],
        **options: Any,  # noqa: ANN401  # as the base class takes them
    ) -> None:
        super().__init__(events, **options)
        self._events = events
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._counted:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)


ServerModels = Annotated[Any, Depends(get_models)]
"""`Models`, or what a test replaced it with."""


class _Handlers:
    """The handlers of one router's routes: plain functions of a checked body and the models."""

    def __init__(self, server: Server, work: Work) -> None:
        self._server = server
        self._work = work

    def started(self, models: Models) -> Callable[[], None]:
        """Begin to follow the models' states; return what ends that."""
        self._server.is_stopping = False
        return self._server.metrics.watch(models)

    async def embeddings(self, body: EmbeddingsRequest, models: ServerModels) -> Response:
        """Embed texts and images: the shapes of OpenAI, infinity, Jina, vLLM and SGLang."""
        self._check_known(body)
        done = await self._work.embed(
            Models.of(models),
            body.items,
            param="input" if body.messages is None else "messages",
            model=body.model,
            modality=body.modality,
            dimensions=body.dimensions,
            truncate=body.truncate,
            single=body.is_single,
        )

        def encode() -> bytes:
            rows = encoded(done.vectors, body.encoding_format or "float")
            data = [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ]
            usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
            answer = {"object": "list", "data": data, "model": done.model, "usage": usage}
            return to_json(answer)

        return _json(await _off_loop(encode, len(done.vectors)))

    async def cohere(self, body: CohereRequest, models: ServerModels, request: Request) -> Response:
        """Embed texts and images in the shape of Cohere's version 2."""
        self._check_known(body)
        done = await self._work.embed(
            Models.of(models),
            body.items,
            param="texts" if body.texts else "images" if body.images else "inputs",
            model=body.model,
            dimensions=body.output_dimension,
            truncate=body.truncate,
        )
        exchange: Exchange = request.scope["aioembed"]

        def encode() -> bytes:
            kinds = body.embedding_types or ["float"]
            units = {"input_tokens": done.tokens, "images": done.images}
            return to_json(
                {
                    "id": exchange.id,
                    "response_type": "embeddings_by_type",
                    "embeddings": {kind: encoded(done.vectors, kind) for kind in kinds},
                    "texts": body.texts or [],
                    "meta": {"api_version": {"version": "2"}, "billed_units": units},
                }
            )

        return _json(await _off_loop(encode, len(done.vectors)))

    async def similarity(self, body: SimilarityRequest, models: ServerModels) -> Response:
        """Compare images or texts among each other, or images with texts, by their cosines."""
        self._check_known(body)
        found = Models.of(models)
        images = [Item(one, "image") for one in body.images or ()]
        texts = [Item(one, "text") for one in body.texts or ()]
        most = self._server.limits.max_inputs
        if len(images) + len(texts) > most:
            raise too_many_inputs(len(images) + len(texts), most, param="images")
        groups: list[tuple[str, list[Item], Served]] = []
        if images:
            groups.append(("images", images, found.find(body.model, "image")))
        if texts:
            groups.append(("texts", texts, found.find(body.text_model, "text")))
        if not groups:
            raise Problem(400, "give images, texts or both", code="invalid_request", param="images")
        for _, _, one in groups:
            found.check_ready(one)
            await one.become_known()
        _check_spaces(groups[0][2], groups[-1][2])
        done = [
            await self._work.embed(found, items, param=param, model=one.name)
            for param, items, one in groups
        ]
        answer = SimilarityResponse(
            model=done[0].model,
            text_model=done[-1].model if texts else None,
            similarities=np.asarray(cosine_similarity(done[0].vectors, done[-1].vectors)).tolist(),
        )
        return _json(answer)

    async def classify(self, body: ClassifyRequest, models: ServerModels) -> Response:
        """Classify an image by labels."""
        self._check_known(body)
        found = Models.of(models)
        prompts = body.prompts or DEFAULT_PROMPTS
        most = self._server.limits.max_inputs
        if len(body.labels) * len(prompts) > most:
            raise too_many_inputs(len(body.labels) * len(prompts), most, param="labels")
        image, text = found.find(body.model, "image"), found.find(body.text_model, "text")
        for one in (image, text):
            found.check_ready(one)
        handles: dict[str, Any] = {"image_model": image.handle, "text_model": text.handle}
        classifier = ZeroShotClassifier(body.labels, prompts=prompts, **handles)
        try:
            pixels = await self._work.admit(body.image)
        except InvalidUserInput as exc:
            raise faulty({0: exc}, "image", single=True) from exc
        scored = await classifier.classify(pixels)
        answer = ClassifyResponse(model=image.name, text_model=text.name, scores=scored.ranked())
        return _json(answer)

    async def list_models(self, models: ServerModels) -> Response:
        """List the models, as OpenAI does."""
        return _json(Models.of(models).cards())

    async def show_model(self, name: str, models: ServerModels) -> Response:
        """Show one model, as OpenAI does."""
        return _json(Models.of(models).card(name))

    async def state(self, models: ServerModels, request: Request) -> Response:
        """Report what every model is doing."""
        return _json(self._states(Models.of(models), request))

    async def state_stream(self, models: ServerModels, request: Request) -> Response:
        """Stream what every model is doing, as server-sent events, at most ten times a second."""
        client = request.client.host if request.client else ""
        self._server.load.check_stream(client)
        headers = {"X-Accel-Buffering": "no"}
        events = self._events(Models.of(models), request)
        counted = self._server.load.stream(client)
        return _StateStream(events, counted, media_type="text/event-stream", headers=headers)

    async def _events(self, models: Models, request: Request) -> AsyncGenerator[str, None]:
        changed = anyio.Event()

        def wake() -> None:
            changed.set()

        end = anyio.current_time() + self._server.limits.stream_seconds
        with ExitStack() as stack:
            stack.enter_context(self._server.on_stop(wake))
            for one in models:
                stack.callback(one.handle.subscribe(wake))
            last = ""
            while True:
                changed = anyio.Event()
                states = self._states(models, request)
                said = states.model_dump_json()
                yield f"event: state\ndata: {said}\n\n" if said != last else ": still here\n\n"
                last = said
                left = end - anyio.current_time()
                if states.is_stopping or left <= 0:
                    return
                with anyio.move_on_after(min(left, _PING_SECONDS)):
                    await changed.wait()
                await anyio.sleep(_LEAST_STREAM_SECONDS)

    async def healthz(self) -> Response:
        """Report that the server answers."""
        return _json(Health())

    async def readyz(self, models: ServerModels, request: Request) -> Response:
        """Report whether every model is loaded."""
        states = self._states(Models.of(models), request)
        return _json(states, status=200 if states.is_ready else 503)

    async def metrics(self) -> Response:
        """Return metrics in Prometheus' text format."""
        text = await anyio.to_thread.run_sync(self._server.metrics.render)
        return Response(text, media_type=CONTENT_TYPE)

    def _states(self, models: Models, request: Request) -> States:
        return models.states(
            is_stopping=self._server.is_stopping,
            with_reasons=self._server.keys.has_one(request.scope),
        )

    def _check_known(self, body: BaseModel) -> None:
        unknown = list(body.model_extra or ())
        if self._server.is_strict and unknown:
            message = f"{unknown[0][:64]} is not a field of this request"
            raise Problem(400, message, code="unknown_field", param=unknown[0][:64])


async def _off_loop(encode: Callable[[], bytes], count: int) -> bytes:
    """Encode vectors, many of them in a thread."""
    return encode() if count <= _INLINE_VECTORS else await anyio.to_thread.run_sync(encode)


def _json(answer: BaseModel | bytes, *, status: int = 200) -> Response:
    content = answer if isinstance(answer, bytes) else answer.model_dump_json()
    return Response(content, status, media_type="application/json")


def _check_spaces(image: Served, text: Served) -> None:
    if not image.handle.space.is_compatible(text.handle.space):
        raise IncompatibleSpaces(
            "the image model and the text model are not of one checkpoint, so that their vectors "
            "cannot be compared: name others with model and text_model"
        )


def stop(application: FastAPI) -> None:
    """Let an application's streams of states end, since its server stops.

    Servers wait for open streams when they stop; call this on the event loop's thread before.

    Args:
        application: Made by `app`.
    """
    server: Server = application.state.aioembed
    server.stop()
