"""`aioembed describe`: a model file's inputs and outputs, and what is missing to use it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio
import typer

from aioembed._local_file import LocalFile
from aioembed._probe import probe_once
from aioembed._signature import ModelContract, read_contract
from aioembed.errors import InvalidConfig, UnknownPreprocessing
from aioembed.folders import cache_folder
from aioembed.models import ModelSpec, Sidecar, local_path, resolve_model
from aioembed.runtime import Program, operators_outside

from .common import (
    DebugOption,
    PreprocessingOption,
    complete_models,
    guarded,
    to_json,
    usage_error,
    warn,
    write_result,
)

__all__ = ["describe"]


def describe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A .pte file, or a name.", autocompletion=complete_models
        ),
    ],
    *,
    preprocessing: PreprocessingOption = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Write that to NAME.json beside the file, which is read from then on."
        ),
    ] = False,
    output: Annotated[
        int | None,
        typer.Option(
            "--output",
            min=0,
            metavar="N",
            help="Which of several outputs is the embedding, from 0.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="The program embeds texts.")] = False,
    output_format: Annotated[
        Literal["text", "json"], typer.Option("--format", "-f", help="Of the description.")
    ] = "text",
    debug: DebugOption = False,
) -> None:
    """Print the inputs, outputs and preprocessing of a .pte program.

    A program of unknown origin is first tried in its own process.
    """
    with guarded(debug):
        spec = resolve_model(model, modality="text" if text else "image")
        if output is not None:
            spec = spec.model_copy(update={"output": output})
        path = local_path(spec)
        if path is None:
            raise usage_error("describe takes a file: download the model first (aioembed download)")
        file = LocalFile(path, cache_folder(None))
        if spec.sha256 is None:
            anyio.run(probe_once, file)
        record, contract = _examine(file, spec, preprocessing)
        if save:
            if contract is None or (contract.preprocessing is None and output is None):
                raise usage_error("nothing to save: give --preprocessing, or --output")
            sidecar = path.with_suffix(".json")
            saved = Sidecar(preprocessing=contract.preprocessing, output=output)
            sidecar.write_text(
                saved.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8"
            )
            warn(f"wrote {sidecar}")
        lines = "".join(f"{_label(name)}{_said(value)}\n" for name, value in record.items())
        write_result(to_json(record) if output_format == "json" else lines.encode(), None)


def _examine(
    file: LocalFile, spec: ModelSpec, preprocessing: str | None
) -> tuple[dict[str, Any], ModelContract | None]:
    """Return what is printed, and the contract, None where something is missing for it."""
    program = Program.load(file.path)
    try:
        forward = program.methods.get("forward")
        record: dict[str, Any] = {
            "file": str(file.path),
            "size_bytes": file.path.stat().st_size,
            "sha256": file.sha256(),
            "methods": ", ".join(program.methods),
            "inputs": [str(info) for info in forward.inputs] if forward else [],
            "outputs": [str(info) for info in forward.outputs] if forward else [],
            "constants": ", ".join(program.constants) or "none",
            "operators_outside_delegates": list(operators_outside(file.path)),
        }
        contract: ModelContract | None = None
        try:
            contract = read_contract(
                program, spec, preprocessing=preprocessing, file_sha256=file.sha256
            )
        except (UnknownPreprocessing, InvalidConfig) as error:
            if preprocessing is not None:
                raise
            record["missing"] = str(error)
        else:
            pixels, metadata = contract.preprocessing, contract.metadata
            record |= {
                "embeds": f"{contract.modality}s",
                "embedding_dim": contract.embedding_dim,
                "output": contract.output,
                "max_batch": contract.max_batch,
                "preprocessing": pixels.model_dump(exclude_none=True) if pixels else None,
                "space_id": contract.space.id,
                "metadata": metadata.model_dump(exclude_none=True) if metadata else None,
                "missing": None,
            }
        return record, contract
    finally:
        program.close()


def _label(name: str) -> str:
    return f"{name.replace('_', ' '):29}"


def _said(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    return "nothing" if value is None else str(value)
