"""The OpenAPI document, made from the schemas."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import schemas

__all__ = ["openapi_document"]

_Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    schemas.ClassifyResponse,
    schemas.EmbeddingsResponse,
    schemas.ErrorBody,
    schemas.Health,
    schemas.ModelCard,
    schemas.ModelList,
    schemas.SimilarityResponse,
    schemas.States,
)
_REQUESTS: tuple[type[BaseModel], ...] = (
    schemas.ClassifyRequest,
    schemas.EmbeddingsRequest,
    schemas.SimilarityRequest,
)
_ERRORS = {
    "400": "The request is at fault.",
    "404": "No such model.",
    "408": "The body came too slowly.",
    "413": "The body or an image is too large.",
    "415": "Of a content type or an image format that is not taken.",
    "422": "An image cannot be fetched or decoded.",
    "429": "Too much waits already; Retry-After says when to ask again.",
    "503": "The model is not ready, or the server stops.",
    "504": "It took too long.",
}
_FILES = {
    schemas.EmbeddingsRequest: "input",
    schemas.SimilarityRequest: "images",
    schemas.ClassifyRequest: "image",
}


def openapi_document(*, version: str, has_key: bool) -> _Json:
    """Return the document of a server.

    Args:
        version: Of the library.
        has_key: Whether the server wants a bearer token.
    """
    document: _Json = {
        "openapi": "3.1.0",
        "info": {"title": "aioembed", "version": version},
        "paths": _paths(has_key=has_key),
        "components": {"schemas": _components()},
    }
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _components() -> _Json:
    wanted: list[tuple[type[BaseModel], Any]] = [(model, "serialization") for model in _MODELS]
    wanted += [(model, "validation") for model in _REQUESTS]
    _, definitions = models_json_schema(wanted, ref_template=_REF)
    components: _Json = definitions["$defs"]
    return components


def _paths(*, has_key: bool) -> _Json:
    guard: _Json = {"security": [{"key": []}]} if has_key else {}
    denied = {"401": _content("The key is missing or wrong.", schemas.ErrorBody)} if has_key else {}

    def get(summary: str, answers: _Json, **more: object) -> _Json:
        return {"get": {"summary": summary, "responses": {**answers, **denied}, **guard, **more}}

    def post(summary: str, asked: type[BaseModel], told: type[BaseModel]) -> _Json:
        errors = {status: _content(text, schemas.ErrorBody) for status, text in _ERRORS.items()}
        answers = {"200": _content("Done.", told), **errors, **denied}
        body = {"required": True, "content": _body(asked)}
        return {"post": {"summary": summary, "requestBody": body, "responses": answers, **guard}}

    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    states = _content("What every model is doing.", schemas.States)
    return {
        "/v1/embeddings": post(
            "Embed images or texts", schemas.EmbeddingsRequest, schemas.EmbeddingsResponse
        ),
        "/v1/similarity": post(
            "Compare images and texts", schemas.SimilarityRequest, schemas.SimilarityResponse
        ),
        "/v1/classify": post(
            "Tell which label fits an image", schemas.ClassifyRequest, schemas.ClassifyResponse
        ),
        "/v1/models": get("List the models", {"200": _content("All.", schemas.ModelList)}),
        "/v1/models/{name}": get(
            "Show a model",
            {
                "200": _content("It.", schemas.ModelCard),
                "404": _content("No such model.", schemas.ErrorBody),
            },
            parameters=[name],
        ),
        "/v1/state": get("Tell what the models are doing", {"200": states}),
        "/healthz": {
            "get": {
                "summary": "Tell that the server answers",
                "responses": {"200": _content("It does.", schemas.Health)},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Tell whether every model is ready",
                "responses": {"200": states, "503": states},
            }
        },
        "/v1/state/stream": get(
            "Stream the models' states",
            {
                "200": {
                    "description": "Server-sent events `state`, each with `States` in JSON.",
                    "content": {"text/event-stream": {"schema": {"type": "string"}}},
                },
                "429": _content("Too many streams are open.", schemas.ErrorBody),
            },
        ),
        "/metrics": get(
            "Tell Prometheus the figures",
            {
                "200": {
                    "description": "Prometheus' text format.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            },
        ),
    }


def _body(asked: type[BaseModel]) -> _Json:
    """A request as JSON, and as a form in which the images are files."""
    form = {
        "type": "object",
        "properties": {
            _FILES[asked]: {"type": "array", "items": {"type": "string", "format": "binary"}},
        },
    }
    return {
        "application/json": {"schema": {"$ref": _REF.format(model=asked.__name__)}},
        "multipart/form-data": {"schema": form},
    }


def _content(description: str, model: type[BaseModel]) -> _Json:
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
