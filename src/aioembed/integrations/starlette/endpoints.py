"""What each address does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .answers import Answers
from .bodies import read_body
from .drain import Drain
from .keys import ApiKey
from .limits import ServerLimits
from .metrics import CONTENT_TYPE, Metrics
from .models import ServedModels
from .pace import Pace
from .schemas import ClassifyRequest, EmbeddingsRequest, Health, SimilarityRequest
from .states import StateStreams
from .work import while_connected

__all__ = ["Endpoints"]

_Asked = TypeVar("_Asked", bound=BaseModel)
_JSON = "application/json"


class Endpoints:
    """The handlers of one server's routes.

    Args:
        models: By name.
        answers: Computes.
        key: Callers without it do not learn why a load failed.
        limits: How much one request may ask for.
        drain: Tells whether the server stops.
        metrics: Of the server.
        document: The OpenAPI document.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        answers: Answers,
        key: ApiKey,
        limits: ServerLimits,
        drain: Drain,
        metrics: Metrics,
        document: Mapping[str, object],
    ) -> None:
        self._models = models
        self._answers = answers
        self._key = key
        self._limits = limits
        self._drain = drain
        self._metrics = metrics
        self._document = document
        self._pace = Pace()
        self._streams = StateStreams(models, drain, max_streams=limits.max_streams)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        return await self._answer(request, EmbeddingsRequest, self._answers.embed)

    async def similarity(self, request: Request) -> Response:
        """`POST /v1/similarity`."""
        return await self._answer(request, SimilarityRequest, self._answers.compare)

    async def classify(self, request: Request) -> Response:
        """`POST /v1/classify`."""
        return await self._answer(request, ClassifyRequest, self._answers.classify)

    async def list_models(self, _request: Request) -> Response:
        """`GET /v1/models`."""
        return _json(self._models.cards())

    async def show_model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return _json(self._models.card(request.path_params["name"]))

    async def state(self, _request: Request) -> Response:
        """`GET /v1/state`."""
        return _json(self._models.states(is_stopping=self._drain.is_stopping))

    async def state_stream(self, _request: Request) -> Response:
        """`GET /v1/state/stream`."""
        return self._streams.respond()

    async def healthz(self, _request: Request) -> Response:
        """`GET /healthz`."""
        return _json(Health())

    async def readyz(self, request: Request) -> Response:
        """`GET /readyz`."""
        states = self._models.states(
            is_stopping=self._drain.is_stopping, with_reasons=self._key.is_given(request.scope)
        )
        return _json(states, status=200 if states.is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        servers = [{"url": request.scope.get("root_path", "") or "/"}]
        return JSONResponse({**self._document, "servers": servers})

    async def _answer(
        self,
        request: Request,
        schema: type[_Asked],
        compute: Callable[[_Asked], Awaitable[BaseModel | bytes]],
    ) -> Response:
        asked = await read_body(request, schema, self._pace, self._limits)
        timeout = self._limits.request_timeout
        answer = await while_connected(request, lambda: compute(asked), timeout=timeout)
        return (
            _json(answer) if isinstance(answer, BaseModel) else Response(answer, media_type=_JSON)
        )


def _json(model: BaseModel, *, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(model.model_dump_json(), status, headers=headers, media_type=_JSON)
