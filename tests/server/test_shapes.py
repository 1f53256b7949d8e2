"""The shapes of requests and answers that other servers' clients speak, by the real clients."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import numpy as np
import pytest

from aioembed import ImageEmbeddings, TextEmbeddings, quantize
from aioembed.integrations.fastapi import Handle, ServerLimits
from aioembed.similarity import VectorType
from aioembed.tokenize import Tokenizer, Tokens

from ..programs import TINY_IMAGE
from .conftest import FIXTURES, Server, picture, serving

pytest.importorskip("tokenizers")

PICTURE = picture()
ENCODED = base64.b64encode(PICTURE).decode()
DATA_URI = f"data:image/png;base64,{ENCODED}"


@pytest.fixture
async def towers() -> list[Handle]:
    return [
        ImageEmbeddings(FIXTURES / "image.pte"),
        TextEmbeddings(FIXTURES / "padded_text.pte", truncate="error"),
    ]


@pytest.fixture
async def clip(towers: list[Handle]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving({"clip": towers}) as client:
        yield client


async def vectors(client: httpx.AsyncClient, path: str = "/v1/embeddings", **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


SAME_IMAGE: dict[str, dict[str, Any]] = {
    "OpenAI, data URI": {"input": DATA_URI},
    "OpenAI, list": {"input": [DATA_URI]},
    "base64 with modality": {"input": ENCODED, "modality": "image"},
    "Jina": {"input": [{"image": ENCODED}]},
    "Jina, URL": {"input": [{"image": DATA_URI}]},
    "Jina, one": {"input": {"image": ENCODED}},
    "URL-safe base64": {"input": [{"image": ENCODED.replace("+", "-").replace("/", "_")}]},
    "vLLM": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": DATA_URI}}],
            }
        ]
    },
    "SGLang": {"messages": [{"content": [{"type": "image", "image": ENCODED}]}]},
    "nulls": {
        "input": DATA_URI,
        "model": None,
        "encoding_format": None,
        "dimensions": None,
        "user": None,
        "truncate": None,
        "modality": None,
    },
    "unknown fields": {"input": DATA_URI, "input_type": "query", "task": "x", "normalized": True},
}


@pytest.mark.anyio
async def test_every_shape_of_an_image_is_the_same_image(
    clip: httpx.AsyncClient, towers: list[Handle]
) -> None:
    image: Any = towers[0]
    expected = await image.forward(PICTURE)
    for path in ("/v1/embeddings", "/embeddings", "/v1/embeddings/"):
        for case, body in SAME_IMAGE.items():
            (found,) = await vectors(clip, path, **body)
            np.testing.assert_array_equal(np.array(found, np.float32), expected, case)


@pytest.mark.anyio
async def test_every_shape_of_a_text_is_the_same_text(
    clip: httpx.AsyncClient, towers: list[Handle]
) -> None:
    text: Any = towers[1]
    expected = await text.forward("a cat")
    for body in (
        {"input": "a cat"},
        {"input": ["a cat"]},
        {"input": [{"text": "a cat"}]},
        {"messages": [{"role": "user", "content": "a cat"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]},
    ):
        (found,) = await vectors(clip, **body)
        np.testing.assert_array_equal(np.array(found, np.float32), expected, str(body))


@pytest.mark.anyio
async def test_texts_and_images_may_come_in_one_list(clip: httpx.AsyncClient) -> None:
    alone = [(await vectors(clip, input=[one]))[0] for one in ("a cat", DATA_URI)]
    together = await vectors(clip, input=["a cat", {"image": DATA_URI}, {"text": "a cat"}])
    np.testing.assert_allclose(together, [alone[0], alone[1], alone[0]], atol=1e-5)


@pytest.mark.anyio
async def test_an_image_as_the_body(clip: httpx.AsyncClient) -> None:
    (expected,) = await vectors(clip, input=DATA_URI)
    headers = {"Content-Type": "image/png"}
    answer = await clip.post("/v1/embeddings", content=PICTURE, headers=headers)
    assert answer.json()["data"][0]["embedding"] == expected
    broken = await clip.post("/v1/embeddings", content=b"nothing", headers=headers)
    assert broken.status_code == 422


@pytest.mark.anyio
async def test_a_model_of_texts_says_so_of_an_image() -> None:
    async with serving(TextEmbeddings(FIXTURES / "padded_text.pte")) as client:
        for body in (
            {"input": DATA_URI},
            {"input": "https://example.org/cat.jpg"},
            {"input": [{"image": ENCODED}]},
            {"input": DATA_URI, "modality": "image"},
        ):
            answer = await client.post("/v1/embeddings", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "modality_not_supported"
        as_text = {"input": "https://example.org/cat.jpg", "modality": "text"}
        assert (await client.post("/v1/embeddings", json=as_text)).status_code == 200


@pytest.mark.anyio
async def test_what_a_model_does_not_embed_gets_the_name_of_the_one_that_does() -> None:
    models: dict[str, Handle] = {
        "pictures": ImageEmbeddings(TINY_IMAGE),
        "words": TextEmbeddings(FIXTURES / "padded_text.pte"),
    }
    async with serving(models) as client:
        for model, value, named in (
            ("pictures", "a photograph of a cat", "name 'words', which embeds texts"),
            ("pictures", [{"text": "a cat"}], "name 'words', which embeds texts"),
            ("words", DATA_URI, "name 'pictures', which embeds images"),
            ("words", [{"image": ENCODED}], "name 'pictures', which embeds images"),
        ):
            body = {"input": value, "model": model}
            answer = await client.post("/v1/embeddings", json=body)
            assert answer.status_code == 400
            assert named in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_a_request_says_what_becomes_of_texts_that_are_too_long(
    clip: httpx.AsyncClient,
) -> None:
    long = "word " * 300
    for refused in (None, False, "error", "NONE"):
        answer = await clip.post("/v1/embeddings", json={"input": long, "truncate": refused})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "text_too_long"
    (other,) = await vectors(clip, input="word " * 400, truncate="end")
    for cut in (True, "end", "END"):
        assert await vectors(clip, input=long, truncate=cut) == [other]
    cohere = await clip.post("/v2/embed", json={"texts": [long], "truncate": "END"})
    assert cohere.status_code == 200


@pytest.mark.anyio
async def test_a_text_is_tokenised_once(
    clip: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, *, limit: int) -> Tokens:
        tokenised.append(text)
        return encode(self, text, limit=limit)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    body = {"input": ["a cat", "word " * 300], "truncate": "end"}
    answer = (await clip.post("/v1/embeddings", json=body)).json()
    assert sorted(tokenised) == body["input"]
    assert answer["usage"]["total_tokens"] == 4 + 77  # of the long text what the model reads


@pytest.mark.anyio
async def test_jina_reads_errors_in_detail(clip: httpx.AsyncClient) -> None:
    answer = await clip.post("/v1/embeddings", json={"input": [{"image": "a", "text": "b"}]})
    assert answer.status_code == 400
    assert "mixes text and image" in answer.json()["detail"]


@pytest.mark.anyio
async def test_compact_vectors_are_those_of_quantize(
    clip: httpx.AsyncClient, towers: list[Handle]
) -> None:
    image: Any = towers[0]
    vector = await image.forward(PICTURE)
    for output in get_args(VectorType):
        expected = quantize(vector, output)
        for field in ("encoding_format", "embedding_type"):
            (found,) = await vectors(clip, input=DATA_URI, **{field: output})
            assert found == expected.tolist()
        body = {"images": [DATA_URI], "embedding_types": [output, "float"]}
        cohere = (await clip.post("/v2/embed", json=body)).json()["embeddings"]
        assert cohere[output] == [expected.tolist()]
        assert len(cohere["float"][0]) == 24


@pytest.mark.anyio
async def test_the_limit_of_inputs_is_not_one_of_other_lists(towers: list[Handle]) -> None:
    async with serving({"clip": towers}, limits=ServerLimits(max_inputs=1)) as client:
        body = {"texts": ["a cat"], "embedding_types": ["float", "int8"], "x": [0.5] * 9}
        assert (await client.post("/v2/embed", json=body)).status_code == 200
        refused = await client.post("/v2/embed", json={"texts": ["a cat", "a dog"]})
        assert refused.status_code == 400


@pytest.mark.anyio
async def test_cohere_has_its_own_answers_and_errors(clip: httpx.AsyncClient) -> None:
    image = {"type": "image_url", "image_url": {"url": DATA_URI}}
    text = {"type": "text", "text": "a cat"}
    body = {"model": "clip", "inputs": [{"content": [image]}, {"content": [text]}]}
    answer = (await clip.post("/v2/embed", json=body)).json()
    assert len(answer["embeddings"]["float"]) == 2
    assert answer["meta"]["billed_units"]["images"] == 1
    for wrong in (
        {"inputs": [{"content": [image, text]}]},
        {"texts": ["a"], "images": [DATA_URI]},
        {},
        {"model": "nothing", "texts": ["a"]},
        {"texts": ["a"], "output_dimension": 3},
        {"texts": ["a"], "embedding_types": ["float"] * 17},
        {"inputs": [{"content": [""] * 300}]},
    ):
        refused = await clip.post("/v2/embed", json=wrong)
        assert refused.status_code in {400, 404}
        assert isinstance(refused.json()["message"], str)


def test_coheres_client_works_unchanged(server: Server) -> None:
    cohere = pytest.importorskip("cohere")
    with httpx.Client() as http:  # the package leaves its own one open
        client = cohere.ClientV2(api_key="unused", base_url=server.url, httpx_client=http)
        texts = client.embed(
            model="clip",
            texts=["a cat", "a dog"],
            input_type="search_document",
            embedding_types=["float", "int8"],
        )
        assert np.shape(texts.embeddings.float_) == (2, 24)
        assert np.shape(texts.embeddings.int8) == (2, 24)
        images = client.embed(
            model="clip", images=[DATA_URI], input_type="image", embedding_types=["float"]
        )
        assert np.linalg.norm(images.embeddings.float_[0]) == pytest.approx(1, abs=1e-5)
        with pytest.raises(cohere.NotFoundError, match="no model is named"):
            client.embed(model="x", texts=["a"], input_type="query", embedding_types=["float"])


@pytest.mark.slow  # takes seconds to import
@pytest.mark.filterwarnings("ignore")  # of others' packages
def test_langchains_client_works_with_its_checks_off(server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options = {"base_url": f"{server.url}/v1", "api_key": "unused", "model": "clip"}
    client = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert np.shape(client.embed_documents(["a cat", "a dog"])) == (2, 24)


@pytest.mark.slow  # takes seconds to import
@pytest.mark.filterwarnings("ignore")  # of others' packages
def test_litellms_client_works_unchanged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    answer = litellm.embedding(
        model="openai/clip", input=["a cat"], api_base=f"{server.url}/v1", api_key="unused"
    )
    assert np.shape(answer.data[0]["embedding"]) == (24,)
