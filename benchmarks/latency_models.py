"""The models that `latency.py` compares, all from one seeded checkpoint.

Which one, `AIOEMBED_BENCH_MODEL` names. Made once and kept in `AIOEMBED_BENCH_DIR`, or a folder in
the system's temporary one. The int8
peers are quantised by their own tools: ONNX Runtime's dynamic (per channel) and static (QDQ, per
channel, calibrated), and OpenVINO's NNCF (for transformers).
"""

from __future__ import annotations

import itertools
import json
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from programs import folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' checkpoints

if TYPE_CHECKING:
    import torch

__all__ = [
    "IMAGE",
    "MODELS",
    "MODEL_VARIABLE",
    "TEXT",
    "checkpoint",
    "input_file",
    "lengths",
    "make_model",
    "model_path",
    "tokenizer",
    "torch_tower",
]

SEED = 20230131
FP32 = "ONNX Runtime fp32"
MODEL_VARIABLE = "AIOEMBED_BENCH_MODEL"
MODELS = {
    "clip-b32": ("image", "text"),
    "openclip-b32-256": ("image", "text"),
    "tinyclip-39m": ("image", "text"),
    "siglip2-b16-224": ("image", "text"),
    "dinov2-s14": ("image",),
    "dinov2-s14-registers": ("image",),
}
"""Models that can be compared, and their towers."""
PADDED = 64

IMAGE = {
    "aioembed fp32": "pte",
    "aioembed int8": "pte",
    "aioembed fp32, handle": "handle",
    "aioembed int8, handle": "handle",
    "stock binding, plain export fp32": "stock",
    "ONNX Runtime fp32": "onnx",
    "ONNX Runtime int8 dynamic": "onnx",
    "ONNX Runtime int8 static": "onnx",
    "OpenVINO fp32": "openvino",
    "OpenVINO bf16": "openvino",
    "OpenVINO int8": "openvino",
    "torch eager": "torch",
    "torch.compile": "torch",
}
TEXT = {name: kind for name, kind in IMAGE.items() if "static" not in name}
MERGES = 48_894
FIRST_LETTER = 3
FIRST_WORD = 256  # the id of "!", the first of the words of one byte


def model_name() -> str:
    return os.environ.get(MODEL_VARIABLE, "clip-b32")


def is_padded() -> bool:
    return model_name().startswith("siglip")


def lengths(tower: str) -> tuple[int, ...]:
    """Return the numbers of tokens to compare with; a zero for images."""
    if tower == "image":
        return (0,)
    return (PADDED,) if is_padded() else (16, 77)


def checkpoint() -> Path:
    path = folder() / model_name()
    if not (path / "tokenizer.json").is_file():
        from tests.export.checkpoints import FULL, save, save_tokenizer

        kind, config, size = FULL[model_name()]
        save(path, kind, config, seed=SEED, image_size=size)
        if is_padded():
            save_tokenizer(path)
        else:
            (path / "tokenizer.json").write_text(tokenizer().read_text(encoding="utf-8"))
    return path


def pixels_of_checkpoint() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint() / "preprocessor_config.json").read_text())
    return content


def image_size() -> int:
    config = pixels_of_checkpoint()
    return int(config.get("crop_size", config["size"])["height"])


def picture(index: int = 0) -> np.ndarray[Any, Any]:
    """Return a photograph of the tower's size, uint8 `(side, side, 3)`.

    It is kept in a file, so that what draws it takes no memory in the contenders' processes.
    """
    file = picture_file(index)
    if not file.is_file():
        from aioembed.testing.photographs import photographs

        photograph = list(photographs().values())[index]
        np.save(file, np.asarray(photograph.resize((image_size(), image_size()))))
    pixels: np.ndarray[Any, Any] = np.load(file)
    return pixels


def picture_file(index: int) -> Path:
    return folder() / f"picture-{image_size()}-{index}.npy"


def inputs(tower: str, length: int, index: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return transformers' inputs of the picture or text of that index."""
    if tower == "image":
        config = pixels_of_checkpoint()
        mean, std = (np.array(config[f"image_{what}"]) for what in ("mean", "std"))
        pixels = (picture(index) / 255 - mean) / std
        return {"pixel_values": pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32)}
    if is_padded():
        words = [FIRST_LETTER + ord(letter) - ord("a") for letter in text(16, index).split()]
        return {"input_ids": np.array([[*words, 1, *[0] * (length - len(words) - 1)]])}
    words = [FIRST_WORD + ord(letter) - ord("!") for letter in text(length, index).split()]
    return {"input_ids": np.array([[49406, *words, 49407]])}


def text(length: int, index: int = 0) -> str:
    """Return a text of that many tokens with those of its start and end, a letter each."""
    letters = string.ascii_lowercase + ("" if is_padded() else string.digits)
    return " ".join(letters[(5 * i + 7 * index) % len(letters)] for i in range(length - 2))


def tokenizer() -> Path:
    """Return a tokenizer of CLIP's format and size that knows letters and pairs of letters."""
    file = folder() / "tokenizer.json"
    if not file.is_file():
        from tests.text.clip_bpe import byte_symbols, tokenizer_json

        symbols = byte_symbols().values()
        pairs = itertools.product(symbols, symbols)
        content = tokenizer_json(list(itertools.islice(pairs, MERGES)))
        file.write_text(json.dumps(content), encoding="utf-8")
    return file


def torch_tower(tower: str, weights: Path) -> torch.nn.Module:
    """Return transformers' tower with the division by the length, for tensors."""
    import torch
    import transformers

    from aioembed.export.families import read_family

    family, _, _ = read_family(weights)
    models, outputs = (
        {str(key): name for key, name in names.items()} for names in (family.models, family.output)
    )
    kind = getattr(transformers, models[tower])

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = kind.from_pretrained(weights).train(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = getattr(self.model(x), outputs[tower])
            length: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
            return vectors / length

    return Tower().train(False)


def model_path(name: str, tower: str) -> Path:
    """Return where a contender's model is, or will be."""
    kind = IMAGE[name]
    precision = "int8" if "int8" in name else "fp32"
    if kind in {"pte", "handle"}:
        return folder() / f"{model_name()}-{tower}-{precision}.pte"
    if kind == "stock":
        return folder() / f"{model_name()}-{tower}-plain.pte"
    if kind == "openvino" and precision == "int8":
        return folder() / f"{model_name()}-{tower}-openvino-int8.xml"
    if kind == "onnx" and precision == "int8":
        return folder() / f"{model_name()}-{tower}-int8-{name.rpartition(' ')[2]}.onnx"
    return folder() / f"{model_name()}-{tower}.onnx"


def make_model(name: str, tower: str) -> None:
    """Make a contender's model, and what it is made from, where they are missing."""
    out = model_path(name, tower)
    if out.exists():
        return
    if IMAGE[name] in {"pte", "handle"}:
        make_pte(out, tower)
    elif IMAGE[name] == "stock":
        make_plain(out, tower)
    elif out == model_path(FP32, tower):
        make_onnx(out, tower)
    else:
        make_model(FP32, tower)
        quantize = quantize_openvino if IMAGE[name] == "openvino" else quantize_onnx
        quantize(model_path(FP32, tower), out, tower)


def input_file(tower: str, length: int, kind: str) -> Path:
    """Return a file with the input of all contenders, in the form in which that kind takes it."""
    if tower == "image" and kind in {"pte", "handle"}:
        picture()
        return picture_file(0)
    if kind == "handle":
        file = folder() / f"text-{model_name()}-{length}.npy"
        np.save(file, np.array(text(16 if is_padded() else length)))
        return file
    ((name, array),) = inputs(tower, length).items()
    file = folder() / f"{name}-{model_name()}-{length}.npy"
    np.save(file, array)
    return file


def make_pte(out: Path, tower: str) -> None:
    from aioembed.export import ExportOptions, export_model

    precision: Any = "int8" if "int8" in out.name else "fp32"
    chosen: Any = tower
    report = export_model(checkpoint(), out, ExportOptions(tower=chosen, precision=precision))
    print(report, file=sys.stderr)


def make_plain(out: Path, tower: str) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # In memory as in shape: a program for other strides is not what is run.
    arrays = map(np.ascontiguousarray, inputs(tower, lengths(tower)[0]).values())
    example = tuple(torch.from_numpy(array) for array in arrays)
    shapes = dynamic_shapes(tower)
    with torch.no_grad():
        module = torch_tower(tower, checkpoint())
        exported = torch.export.export(module, example, dynamic_shapes=shapes)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    out.write_bytes(edge.to_executorch().buffer)


def dynamic_shapes(tower: str) -> tuple[dict[int, Any]] | None:
    """Return the dynamic axes of the input, for an exporter of torch."""
    import torch

    if tower == "image" or is_padded():
        return None
    return ({1: torch.export.Dim("tokens", min=2, max=77)},)


def make_onnx(out: Path, tower: str) -> None:
    import torch

    ((name, array),) = inputs(tower, lengths(tower)[0]).items()
    torch.onnx.export(
        torch_tower(tower, checkpoint()),
        (torch.from_numpy(array),),
        str(out),
        input_names=[name],
        dynamo=True,
        dynamic_shapes=dynamic_shapes(tower),
        external_data=False,
    )


def samples(tower: str, count: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    for index in range(1, count + 1):
        yield inputs(tower, lengths(tower)[0], index)


def quantize_onnx(source: Path, out: Path, tower: str) -> None:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = samples(tower, 4)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.samples, None)

    prepared = out.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    if "static" in out.name:
        q.quantize_static(str(prepared), str(out), Reader(), per_channel=True)
    else:
        q.quantize_dynamic(str(prepared), str(out), per_channel=True)
    prepared.unlink()


def quantize_openvino(source: Path, out: Path, tower: str) -> None:
    import nncf
    import openvino

    given = [next(iter(sample.values())) for sample in samples(tower, 4)]
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(given),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given),
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)
