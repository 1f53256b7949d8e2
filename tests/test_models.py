"""Model sources: names, URLs, paths, and what is none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioembed.errors import InvalidConfig, InvalidModelSource, UnknownModel
from aioembed.models import (
    EFFICIENTNET_LITE0,
    MODELS,
    ModelSpec,
    Preprocessing,
    local_path,
    resolve_model,
)


def test_a_registered_name_gives_its_spec() -> None:
    assert resolve_model("efficientnet-lite0") is EFFICIENTNET_LITE0
    assert resolve_model(EFFICIENTNET_LITE0) is EFFICIENTNET_LITE0


def test_the_embedded_model_ships_with_the_library() -> None:
    path = local_path(EFFICIENTNET_LITE0)
    assert path is not None
    assert path.is_file()


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_says_what_it_is(name: str) -> None:
    spec = MODELS[name]
    assert spec.licence
    assert spec.summary
    assert spec.embedding_dim


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="efficientnet-lite0"):
        resolve_model("efficientnet_lite0")


def test_a_model_of_an_earlier_version_is_named_with_what_replaces_it() -> None:
    with pytest.raises(UnknownModel, match=r"removed in 0\.2\.0; use efficientnet-lite0"):
        resolve_model("gist-512")


@pytest.mark.parametrize("source", ["ftp://host/model.pte", "s3://bucket/model.pte"])
def test_another_scheme_is_refused(source: str) -> None:
    with pytest.raises(InvalidModelSource, match="https:"):
        resolve_model(source)


@pytest.mark.parametrize("source", ["", 3, None])
def test_a_value_that_is_not_a_source_is_refused(source: object) -> None:
    with pytest.raises(InvalidModelSource):
        resolve_model(source)  # type: ignore[arg-type]


def test_a_file_of_another_host_is_refused() -> None:
    with pytest.raises(InvalidModelSource, match="another host"):
        resolve_model("file://elsewhere/model.pte")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("model.pte", Path("model.pte")),
        ("./a b.pte", Path("a b.pte")),
        ("file:///a%20b.pte", Path("/a b.pte")),
        ("file://localhost/a.pte", Path("/a.pte")),
        (Path("/x/model"), Path("/x/model")),
    ],
)
def test_paths_and_file_urls_lie_on_this_machine(source: str | Path, path: Path) -> None:
    assert local_path(resolve_model(source)) == path


def test_a_url_must_be_fetched() -> None:
    spec = resolve_model("https://example.org/models/mine.pte?download=true")
    assert local_path(spec) is None
    assert spec.name == "mine.pte"


def test_a_spec_that_cannot_be_says_which_field_is_wrong() -> None:
    with pytest.raises(InvalidConfig, match="sha256"):
        ModelSpec(name="x", source="x.pte", modality="image", sha256="short")


def test_patches_must_divide_the_image() -> None:
    with pytest.raises(InvalidConfig, match="patch_size must divide"):
        Preprocessing(
            height=224,
            width=224,
            resize="crop",
            interpolation="bicubic",
            antialias=True,
            layout="patches",
            patch_size=30,
        )
