"""`POST /v1/embeddings`, `/v1/similarity` and `/v1/classify`."""

from __future__ import annotations

import base64
import socket
import threading
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import numpy as np
import pytest

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.integrations.fastapi import Handle, ServerLimits
from aioembed.integrations.fastapi.schemas import EmbeddingsResponse, ModelList
from aioembed.testing._loopback import LoopbackServer, Reply, Request
from aioembed.text import TextEmbeddings

from .conftest import FIXTURES, picture, serving

pytestmark = pytest.mark.anyio

PICTURE = picture()
ENCODED = base64.b64encode(PICTURE).decode()


async def embed(client: httpx.AsyncClient, **body: object) -> EmbeddingsResponse:
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return EmbeddingsResponse.model_validate_json(answer.content)


async def test_every_form_of_an_image_gives_the_models_own_vector(
    client: httpx.AsyncClient, tiny: ImageEmbeddings
) -> None:
    expected = await tiny.forward(PICTURE)
    found = await embed(client, input=[ENCODED, f"data:image/png;base64,{ENCODED}"])
    uploads = [
        ("input", ("a.png", PICTURE, "image/png")),
        ("input", ("b.png", picture(1), "image/png")),
    ]
    answer = await client.post("/v1/embeddings", files=uploads, data={"model": "tiny-image"})
    uploaded = EmbeddingsResponse.model_validate_json(answer.content)
    for one in (*found.data, uploaded.data[0]):
        np.testing.assert_array_equal(np.array(one.embedding, np.float32), expected)
    assert [one.index for one in uploaded.data] == [0, 1]
    assert uploaded.model == "tiny-image"
    assert uploaded.usage.total_tokens == 0


async def test_an_image_is_fetched_where_the_policy_allows_its_host(tiny: ImageEmbeddings) -> None:
    async with LoopbackServer(lambda _request: Reply(body=PICTURE)) as web:
        policy = SourcePolicy.untrusted().allow(private_addresses=True, ports=None)
        async with serving(tiny, policy=policy) as client:
            found = await embed(client, input=f"{web.origin}/a.png")
        assert len(found.data) == 1
        assert len(web.requests) == 1


async def test_names_that_do_not_resolve_do_not_delay_other_requests(
    tiny: ImageEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, asked = threading.Event(), anyio.Event()
    resolve = socket.getaddrinfo
    token = anyio.lowlevel.current_token()

    def lookup(host: str | bytes, *args: Any, **options: Any) -> Any:
        if not str(host).startswith("dead"):
            return resolve(host, *args, **options)
        anyio.from_thread.run_sync(asked.set, token=token)
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "timed out")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    policy = SourcePolicy.untrusted().allow(private_addresses=True, ports=None)
    async with (
        LoopbackServer(lambda _request: Reply(body=PICTURE)) as web,
        serving(tiny, policy=policy) as client,
        anyio.create_task_group() as group,
    ):
        dead = {"input": [f"http://dead{number}.test/" for number in range(16)]}
        group.start_soon(partial(client.post, "/v1/embeddings", json=dead))
        await asked.wait()
        found = await embed(client, input=[ENCODED, web.origin.replace("127.0.0.1", "localhost")])
        assert len(found.data) == 2
        group.cancel_scope.cancel()
        released.set()


async def test_images_that_are_being_fetched_are_bounded(tiny: ImageEmbeddings) -> None:
    asked = anyio.Event()

    def silent(_request: Request) -> Reply:
        asked.set()
        return Reply(hang_after=-1)

    policy = SourcePolicy.untrusted().allow(private_addresses=True, ports=None)
    limits = ServerLimits(max_fetches=1)
    async with (
        LoopbackServer(silent) as web,
        serving(tiny, policy=policy, limits=limits) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(partial(client.post, "/v1/embeddings", json={"input": web.origin}))
        await asked.wait()
        refused = await client.post("/v1/embeddings", json={"input": web.origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_fetches")
        assert refused.headers["retry-after"] == "1"
        assert len((await embed(client, input=ENCODED)).data) == 1
        group.cancel_scope.cancel()


async def test_base64_vectors_are_little_endian_float32(
    client: httpx.AsyncClient, tiny: ImageEmbeddings
) -> None:
    found = await embed(client, input=ENCODED, encoding_format="base64", dimensions=512)
    vector = np.frombuffer(base64.b64decode(str(found.data[0].embedding)), "<f4")
    np.testing.assert_array_equal(vector, await tiny.forward(PICTURE))


async def test_every_input_at_fault_is_named(client: httpx.AsyncClient) -> None:
    truncated = base64.b64encode(PICTURE[:60]).decode()
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9).decode()
    inputs = [ENCODED, truncated, "data:image/png;base64,!", f"data:;base64,{eps}"]
    answer = await client.post("/v1/embeddings", json={"input": inputs})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["param"] == "input[1]"
    assert {item["index"]: item["code"] for item in error["items"]} == {
        1: "image_decode_error",
        2: "image_decode_error",
        3: "unsupported_image_format",
    }


async def test_text_and_image_models_may_share_a_name() -> None:
    pytest.importorskip("tokenizers")
    image = ImageEmbeddings(FIXTURES / "image.pte")
    text = TextEmbeddings(FIXTURES / "padded_text.pte")
    both: list[Handle] = [image, text]
    async with serving({"clip": both}) as client:
        by_default = await embed(client, input="a photo of a cat", model="clip")
        as_image = await embed(client, input=ENCODED, model="clip", modality="image")
        expected = await text.forward("a photo of a cat")
        np.testing.assert_array_equal(np.array(by_default.data[0].embedding, np.float32), expected)
        assert by_default.usage.prompt_tokens > 2
        assert as_image.usage.prompt_tokens == 0
        cards = ModelList.model_validate_json((await client.get("/v1/models")).content)
        assert [(card.id, card.modalities) for card in cards.data] == [("clip", ["image", "text"])]

        body: dict[str, object] = {"images": [ENCODED, ENCODED], "texts": ["cat", "dog", "tree"]}
        compared = (await client.post("/v1/similarity", json=body)).json()
        assert np.shape(compared["similarities"]) == (2, 3)
        body = {"image": ENCODED, "labels": ["cat", "dog"]}
        classified = (await client.post("/v1/classify", json=body)).json()
        assert {score["label"] for score in classified["scores"]} == {"cat", "dog"}
        assert sum(score["probability"] for score in classified["scores"]) == pytest.approx(1)
        for labels, prompts, code in (
            (["a"] * 20, ["{}"] * 20, "too_many_inputs"),
            (["x" * 50_000], ["{}" * 50_000], "text_too_long"),
        ):
            body = {"image": ENCODED, "labels": labels, "prompts": prompts}
            refused = (await client.post("/v1/classify", json=body)).json()["error"]
            assert refused["code"] == code
            assert len(refused["message"]) < 500
        upload = {"image": ("a.png", PICTURE)}
        form = {"labels": ["cat", "dog"]}
        assert (await client.post("/v1/classify", files=upload, data=form)).json() == classified


async def test_similarities_of_images_are_symmetric_with_ones_on_the_diagonal(
    client: httpx.AsyncClient,
) -> None:
    files = [("images", (f"{seed}.png", picture(seed))) for seed in range(3)]
    answer = await client.post("/v1/similarity", files=files)
    matrix = np.array(answer.json()["similarities"])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)


async def test_spaces_that_differ_are_not_compared(tiny: ImageEmbeddings) -> None:
    pytest.importorskip("tokenizers")
    async with serving([tiny, TextEmbeddings(FIXTURES / "padded_text.pte")]) as client:
        body = {"images": [ENCODED], "texts": ["cat"]}
        answer = await client.post("/v1/similarity", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "incompatible_spaces"


async def test_a_long_request_is_answered_in_order(tiny: ImageEmbeddings) -> None:
    pictures = [picture(seed) for seed in range(20)]
    async with serving(tiny, limits=ServerLimits(inputs_at_once=4)) as client:
        files = [("input", ("a.png", one)) for one in pictures]
        found = EmbeddingsResponse.model_validate_json(
            (await client.post("/v1/embeddings", files=files)).content
        )
        for one, image in zip(found.data, pictures, strict=True):
            np.testing.assert_array_equal(
                np.array(one.embedding, np.float32), await tiny.forward(image)
            )
