"""The models that `latency.py` compares, all from one seeded checkpoint.

Made once and kept in `AIOEMBED_BENCH_DIR`, or a folder in the system's temporary one. The int8
peers are quantised by their own tools: ONNX Runtime's dynamic (per channel) and static (QDQ, per
channel, calibrated), and OpenVINO's NNCF (for transformers).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from programs import folder

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGE", "TEXT", "checkpoint", "input_file", "make_model", "model_path", "torch_tower"]

SEED = 20230131
FP32 = "ONNX Runtime fp32"
MEAN = np.array((0.48145466, 0.4578275, 0.40821073))
STD = np.array((0.26862954, 0.26130258, 0.27577711))

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
TEXT = {name: kind for name, kind in IMAGE.items() if kind in {"pte", "onnx", "openvino", "torch"}}
TEXT = {name: kind for name, kind in TEXT.items() if "static" not in name}


def checkpoint() -> Path:
    path = folder() / "clip-vit-base-patch32"
    if not (path / "config.json").is_file():
        import torch
        from transformers import CLIPConfig, CLIPModel

        torch.manual_seed(SEED)
        CLIPModel(CLIPConfig()).save_pretrained(path)
    return path


def picture(index: int = 0) -> np.ndarray[Any, Any]:
    """Return a drawn scene of the tower's size, uint8 `(224, 224, 3)`.

    It is kept in a file, so that what draws it takes no memory in the contenders' processes.
    """
    file = picture_file(index)
    if not file.is_file():
        from aioembed.testing.scenes import draw_scenes

        scene = list(draw_scenes().values())[index]
        np.save(file, np.asarray(scene.convert("RGB").resize((224, 224))))
    pixels: np.ndarray[Any, Any] = np.load(file)
    return pixels


def picture_file(index: int) -> Path:
    return folder() / f"picture-{index}.npy"


def inputs(tower: str, length: int, index: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return transformers' inputs of the scene or text of that index."""
    if tower == "image":
        pixels = (picture(index) / 255 - MEAN) / STD
        return {"pixel_values": pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32)}
    words = 7919 * (np.arange(length - 2) + 97 * index + 1) % 49406
    return {"input_ids": np.concatenate([[49406], words, [49407]])[np.newaxis]}


def torch_tower(tower: str, weights: Path) -> torch.nn.Module:
    """Return transformers' tower with the division by the length, for tensors."""
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = (
                CLIPVisionModelWithProjection if tower == "image" else CLIPTextModelWithProjection
            )
            self.model = kind.from_pretrained(weights).train(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.model(x)[0]
            length: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
            return vectors / length

    return Tower().train(False)


def model_path(name: str, tower: str) -> Path:
    """Return where a contender's model is, or will be."""
    kind = IMAGE[name]
    precision = "int8" if "int8" in name else "fp32"
    if kind in {"pte", "handle"}:
        return folder() / f"clip-{tower}-{precision}.pte"
    if kind == "stock":
        return folder() / f"clip-{tower}-plain.pte"
    if kind == "openvino" and precision == "int8":
        return folder() / f"clip-{tower}-openvino-int8.xml"
    if kind == "onnx" and precision == "int8":
        return folder() / f"clip-{tower}-int8-{name.rpartition(' ')[2]}.onnx"
    return folder() / f"clip-{tower}.onnx"


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


def input_file(tower: str, length: int, *, as_picture: bool) -> Path:
    """Return a file with the input of all contenders, as a picture or as transformers takes it."""
    if tower == "image" and as_picture:
        picture()
        return picture_file(0)
    ((name, array),) = inputs(tower, length).items()
    file = folder() / f"{name}-{length}.npy"
    np.save(file, array)
    return file


def make_pte(out: Path, tower: str) -> None:
    from aioembed.export.clip import ClipOptions, export_clip

    precision: Any = "int8" if "int8" in out.name else "fp32"
    chosen: Any = tower
    report = export_clip(checkpoint(), out, ClipOptions(tower=chosen, precision=precision))
    print(report, file=sys.stderr)


def make_plain(out: Path, tower: str) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # In memory as in shape: a program for other strides is not what is run.
    arrays = map(np.ascontiguousarray, inputs(tower, 16).values())
    example = tuple(torch.from_numpy(array) for array in arrays)
    with torch.no_grad():
        exported = torch.export.export(torch_tower(tower, checkpoint()), example)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    out.write_bytes(edge.to_executorch().buffer)


def make_onnx(out: Path, tower: str) -> None:
    import torch

    ((name, array),) = inputs(tower, 16).items()
    dynamic = ({1: torch.export.Dim("tokens", min=2, max=77)},) if tower == "text" else None
    torch.onnx.export(
        torch_tower(tower, checkpoint()),
        (torch.from_numpy(array),),
        str(out),
        input_names=[name],
        dynamo=True,
        dynamic_shapes=dynamic,
        external_data=False,
    )


def samples(tower: str, count: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    for index in range(1, count + 1):
        yield inputs(tower, 16, index)


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
