"""`aioembed embed`: what it writes, in every format, and where."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import SIDE, Invoke, RunProcess

FORMATS = ["json", "npy", "csv"]


def read(form: str, written: bytes) -> NDArray[np.float32]:
    if form == "npy":
        array: NDArray[np.float32] = np.load(io.BytesIO(written))
        return array
    if form == "json":
        rows = [result["embedding"] for result in json.loads(written)["results"]]
    else:
        rows = [row[1:] for row in list(csv.reader(io.StringIO(written.decode())))[1:]]
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_reads_back_as_vectors_of_length_1(
    invoke: Invoke, pictures: list[Path], form: str
) -> None:
    result = invoke("embed", *pictures, "--format", form)
    vectors = read(form, result.stdout_bytes)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert vectors.shape == (3, 1280)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_formats_hold_the_same_float32_values(invoke: Invoke, pictures: list[Path]) -> None:
    first, *others = (
        read(form, invoke("embed", *pictures, "--format", form).stdout_bytes) for form in FORMATS
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_results_are_in_the_order_of_the_arguments(invoke: Invoke, pictures: list[Path]) -> None:
    names = [str(pictures[index]) for index in (2, 0, 1, 2, 0, 0, 1, 1, 2, 2)]
    document = json.loads(invoke("embed", *names).stdout)
    assert [result["input"] for result in document["results"]] == names
    first = {name: document["results"][names.index(name)]["embedding"] for name in names}
    for result in document["results"]:
        np.testing.assert_allclose(result["embedding"], first[result["input"]], atol=1e-6)


def test_json_names_the_model_and_the_space(invoke: Invoke, picture: Path) -> None:
    document = json.loads(invoke("embed", picture).stdout)
    assert document["model"] == "efficientnet-lite0"
    assert document["dim"] == 1280
    assert document["space_id"]


def test_a_dash_reads_an_image_from_stdin(invoke: Invoke, picture: Path) -> None:
    piped = invoke("embed", "-", "--format", "npy", stdin=picture.read_bytes())
    named = invoke("embed", picture, "--format", "npy")
    assert piped.stdout_bytes == named.stdout_bytes


def test_uris_are_embedded_like_paths(invoke: Invoke, picture: Path) -> None:
    document = json.loads(invoke("embed", picture, picture.as_uri()).stdout)
    by_path, by_uri = (result["embedding"] for result in document["results"])
    assert by_path == by_uri


def test_output_goes_to_a_file_and_stdout_stays_empty(
    invoke: Invoke, picture: Path, tmp_path: Path
) -> None:
    output = tmp_path / "vectors.npy"
    result = invoke("embed", picture, "--format", "npy", "--output", output)
    assert result.exit_code == 0
    assert result.stdout_bytes == b""
    assert np.load(output).shape == (1, 1280)


@pytest.mark.parametrize("name", ["missing/vectors.json", ""])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    invoke: Invoke, picture: Path, tmp_path: Path, name: str
) -> None:
    result = invoke("embed", picture, "--output", tmp_path / name)
    assert result.exit_code == 5
    assert "cannot write" in result.stderr


def test_an_unfinished_file_that_cannot_be_made_is_reported_on_one_line(
    invoke: Invoke, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.json.part").mkdir()
    result = invoke("embed", picture, "--output", tmp_path / "out.json")
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1].startswith("aioembed: error: cannot write")
    assert "Traceback" not in result.stderr


def test_one_bad_image_leaves_the_others_their_rows(
    invoke: Invoke, pictures: list[Path], tmp_path: Path
) -> None:
    """In json an error, in npy a row of NaN, in csv no line."""
    names = [pictures[0], tmp_path / "missing.png", pictures[1]]
    written = {form: invoke("embed", *names, "--format", form) for form in FORMATS}
    assert {result.exit_code for result in written.values()} == {1}
    assert all("missing.png" in result.stderr for result in written.values())

    results = json.loads(written["json"].stdout)["results"]
    assert results[1]["error"]["type"] == "FileReadFailed"
    assert results[1]["error"]["code"] == 114
    rows = np.load(io.BytesIO(written["npy"].stdout_bytes))
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    lines = list(csv.reader(io.StringIO(written["csv"].stdout)))[1:]
    assert [line[0] for line in lines] == [str(pictures[0]), str(pictures[1])]


def test_a_model_may_be_given_by_path(invoke: Invoke, picture: Path) -> None:
    from aioembed.models import EFFICIENTNET_LITE0, local_path

    by_path = invoke("embed", picture, "--format", "npy", "--model", local_path(EFFICIENTNET_LITE0))
    by_name = invoke("embed", picture, "--format", "npy")
    assert by_path.exit_code == 0
    assert by_path.stdout_bytes == by_name.stdout_bytes


def test_more_pixels_can_be_allowed_or_fewer(invoke: Invoke, picture: Path) -> None:
    refused = invoke("embed", picture, "--max-pixels", SIDE * SIDE - 1)
    assert refused.exit_code == 1
    assert "allow more with --max-pixels" in refused.stderr
    assert "SourcePolicy" not in refused.stderr
    assert invoke("embed", picture, "--max-pixels", SIDE * SIDE).exit_code == 0


def test_urls_are_fetched_through_the_proxy_of_the_environment(
    invoke: Invoke, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked = picture.read_bytes(), []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        result = invoke("embed", "http://intranet.invalid/cat.png")
        proxy.shutdown()
    assert result.exit_code == 0, result.stderr
    assert asked == ["http://intranet.invalid/cat.png"]


def test_folders_and_lists_are_embedded(
    invoke: Invoke, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / ".hidden.png").write_bytes(pictures[0].read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    by_folder = invoke("embed", tmp_path)
    names = [result["input"] for result in json.loads(by_folder.stdout)["results"]]
    assert names == [str(path) for path in pictures]

    listed = "".join(f"{path}\n" for path in pictures).encode()
    for arguments, stdin in (
        (("--files-from", "-"), listed),
        (("--files-from", "-", "-0"), listed.replace(b"\n", b"\0")),
    ):
        result = invoke("embed", *arguments, stdin=stdin)
        assert (result.exit_code, result.stdout) == (0, by_folder.stdout)


def test_one_impossible_name_does_not_fail_the_others(
    run_process: RunProcess, picture: Path, tmp_path: Path
) -> None:
    names = [os.fsencode(picture), b"\xff" + b"x" * 5000, os.fsencode(picture)]
    done = run_process("embed", "--files-from", "-", "-f", "npy", stdin=b"\n".join(names))
    rows = np.load(io.BytesIO(done.stdout))
    assert done.returncode == 1
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    assert len(done.stderr.splitlines()) == 2


def test_an_input_is_never_overwritten(
    invoke: Invoke, pictures: list[Path], tmp_path: Path
) -> None:
    content = pictures[0].read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(pictures[0])
    for command, output in (("embed", pictures[0]), ("embed", link), ("similarity", pictures[0])):
        result = invoke(command, *pictures, "--output", output)
        assert result.exit_code == 5
        assert "one of the inputs" in result.stderr
        assert pictures[0].read_bytes() == content
    for name in ("folder.png/x.npy", ".part"):
        assert not (tmp_path / name).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("command", ["embed", "models", "similarity"])
def test_results_that_cannot_be_written_are_reported_on_one_line(
    pictures: list[Path], command: str
) -> None:
    arguments = [] if command == "models" else [str(path) for path in pictures]
    for redirect in ("> /dev/full", ">&-"):
        line = f'exec "$0" -m aioembed "$@" {redirect}'
        done = subprocess.run(
            ["bash", "-c", line, sys.executable, command, *arguments],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 5, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_call_without_inputs_says_so(invoke: Invoke) -> None:
    for arguments in (("embed",), ("embed", "")):
        assert invoke(*arguments).exit_code == 2
