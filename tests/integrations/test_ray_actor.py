"""The actor class by itself, without a cluster."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings
from aioembed.errors import AioembedError, InvalidConfig, ModelFileUnreadable

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")

from aioembed.integrations.ray import ImageEmbedder, embed_images


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def embedder() -> Iterator[ImageEmbedder]:
    with closing(ImageEmbedder(image_column="source")) as made:
        yield made


def expected(image: Any) -> Any:
    async def embed() -> Any:
        async with ImageEmbeddings(EFFICIENTNET_LITE0) as model:
            return await model.forward(image)

    return anyio.run(embed)


def test_paths_uris_and_bytes_are_embedded_as_forward_does(
    embedder: ImageEmbedder, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    data_uri = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    texts = embedder(pa.table({"source": [str(path), path.as_uri(), data_uri]}))
    binary = embedder(pa.table({"source": [picture(1)], "number": [7]}))
    rows = [*texts["embedding"].to_pylist(), *binary["embedding"].to_pylist()]
    np.testing.assert_allclose(rows, np.tile(expected(picture(1)), (4, 1)), atol=1e-6)
    assert texts["error"].null_count == 3
    assert binary["number"].to_pylist() == [7]
    assert binary.schema.field("embedding").type == pa.list_(pa.float32(), 1280)


def tensors(kind: str) -> Any:
    from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

    pixels = np.asarray(Image.open(io.BytesIO(picture(1))))
    if kind == "Arrow, fixed shape":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([pixels, pixels]))
    if kind == "Ray, fixed shape":
        return ArrowTensorArray.from_numpy(np.stack([pixels, pixels]))
    return ArrowVariableShapedTensorArray.from_numpy([pixels, pixels])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray's own
@pytest.mark.parametrize("kind", ["Arrow, fixed shape", "Ray, fixed shape", "Ray, variable shape"])
def test_columns_of_tensors_are_embedded(embedder: ImageEmbedder, kind: str) -> None:
    done = embedder(pa.table({"source": tensors(kind)}))
    expected_rows = np.tile(expected(picture(1)), (2, 1))
    np.testing.assert_allclose(done["embedding"].to_pylist(), expected_rows, atol=1e-6)


def test_hugging_face_images_are_embedded(embedder: ImageEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    rows = [
        {"bytes": picture(1), "path": "elsewhere.png"},
        {"bytes": None, "path": str(path)},
        {"bytes": None, "path": None},
    ]
    done = embedder(pa.table({"source": rows}))
    vectors, errors = done["embedding"].to_pylist(), done["error"].to_pylist()
    np.testing.assert_allclose(vectors[:2], np.tile(expected(picture(1)), (2, 1)), atol=1e-6)
    assert vectors[2] is None
    assert errors[:2] == [None, None]
    assert errors[2].startswith("InvalidUserInput: ")


def test_pandas_batches_stay_pandas(embedder: ImageEmbedder) -> None:
    pandas = pytest.importorskip("pandas")
    done = embedder(pandas.DataFrame({"source": [picture(1), None], "number": [7, 8]}))
    assert list(done.columns) == ["source", "number", "embedding", "error"]
    np.testing.assert_allclose(done["embedding"][0], expected(picture(1)), atol=1e-6)
    assert done["embedding"][1] is None
    assert done["error"][1].startswith("InvalidUserInput: ")


def test_batches_of_arrays_stay_arrays(embedder: ImageEmbedder) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(picture(1))))
    done = embedder({"source": np.stack([pixels, pixels])})
    np.testing.assert_allclose(done["embedding"], np.tile(expected(picture(1)), (2, 1)), atol=1e-6)
    done = embedder({"source": np.array([picture(1), b"not an image"], object)})
    assert np.isnan(done["embedding"][1]).all()
    assert done["error"][0] is None
    assert done["error"][1].startswith("ImageDecodeError: ")


def test_a_row_that_fails_keeps_its_error_and_costs_the_others_nothing(
    embedder: ImageEmbedder,
) -> None:
    batch = pa.table({"source": [picture(1), b"no image", None, b"", picture(2)]})
    done = embedder(batch)
    assert [row is None for row in done["embedding"].to_pylist()] == [
        False,
        True,
        True,
        True,
        False,
    ]
    errors = done["error"].to_pylist()
    assert (errors[0], errors[4]) == (None, None)
    assert errors[1].startswith("ImageDecodeError: ")
    assert all(isinstance(error, str) and ": " in error for error in errors[1:4])
    np.testing.assert_allclose(done["embedding"].to_pylist()[4], expected(picture(2)), atol=1e-6)


def test_batches_without_rows_or_in_several_chunks_are_taken(embedder: ImageEmbedder) -> None:
    one = pa.table({"source": [picture(1)]})
    assert embedder(one.slice(0, 0)).schema == embedder(one).schema
    assert embedder(pa.concat_tables([one, one])).num_rows == 2


def test_columns_are_named_by_the_caller_and_replaced_where_they_exist() -> None:
    made = ImageEmbedder(
        image_column="a", embedding_column="b", error_column="c", keep_images=False
    )
    with closing(made) as embedder:
        done = embedder(pa.table({"a": [picture(1)], "b": ["old"], "d": [1]}))
        assert done.column_names == ["d", "b", "c"]
        with pytest.raises(InvalidConfig, match="no column 'a', only b: name"):
            embedder(done.select(["b"]))


def test_a_model_that_cannot_be_loaded_raises_and_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    before = set(threading.enumerate())
    with pytest.raises(ModelFileUnreadable):
        ImageEmbedder(tmp_path / "missing.pte")
    with pytest.raises(AioembedError):
        ImageEmbedder(threads=0)
    assert set(threading.enumerate()) <= before


def test_a_closed_embedder_can_be_closed_again() -> None:
    embedder = ImageEmbedder()
    embedder.close()
    embedder.close()


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"actors": (2, 1)}, {"cpus_per_actor": 0}])
def test_numbers_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="at the least"):
        embed_images(None, **wrong)  # type: ignore[arg-type]


def test_a_process_that_closes_nothing_ends_by_itself() -> None:
    program = "from aioembed.integrations.ray import ImageEmbedder; made = ImageEmbedder()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
