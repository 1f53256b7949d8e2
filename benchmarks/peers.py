"""What `throughput.py` compares: this library and its peers, each as one awaitable call per image.

    python benchmarks/peers.py

makes their ONNX models and checkpoint: CLIP's image tower with random weights, as `programs.py`
has it. That needs the [export] extra, onnx and onnxscript.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from programs import folder, image_tower, program

__all__ = ["ENGINES", "Call", "Item", "drawn_images", "make_models", "open_engine", "patches"]

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
Item = bytes | np.ndarray
Call = Callable[[Item], Awaitable[object]]


def drawn_images(kind: str) -> list[Item]:
    """Sixteen images: smooth noise, so that JPEGs are of a photograph's size."""
    size = (224, 224) if kind == "array" else (480, 640)
    images: list[Item] = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        if kind == "array":
            images.append(pixels)
        else:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            images.append(buffer.getvalue())
    return images


def as_image(item: Item) -> Image.Image:
    return Image.open(io.BytesIO(item)) if isinstance(item, bytes) else Image.fromarray(item)


def pixel_values(item: Item) -> np.ndarray:
    """Decode and preprocess as CLIP was trained: float32 `(1, 3, 224, 224)`, values 0..1."""
    image = as_image(item).convert("RGB")
    if min(image.size) != 224:
        scale = 224 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    image = image.crop((left, top, left + 224, top + 224))
    return (np.asarray(image, np.float32) / 255).transpose(2, 0, 1)[np.newaxis]


def normalized(item: Item) -> np.ndarray:
    values = pixel_values(item)
    return np.ascontiguousarray((values - MEAN[:, None, None]) / STD[:, None, None], np.float32)


def patches(item: Item) -> np.ndarray:
    grid = pixel_values(item).reshape(3, 7, 32, 7, 32).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(grid.reshape(1, 49, 3072))


def onnx_model(precision: str) -> Path:
    path = folder() / "clip_image" / f"{precision}.onnx"
    if not path.exists():
        subprocess.run([sys.executable, "-W", "ignore", __file__], check=True)
    return path


def make_onnx() -> None:
    """Write the tower of `clip_image_fp32` as ONNX, fp32 and int8, in fastembed's layout."""
    import torch
    from onnxruntime.quantization import quantize_dynamic

    to = folder() / "clip_image"
    to.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        image_tower(),
        (torch.rand(2, 3, 224, 224),),
        to / "fp32.onnx",
        input_names=["pixel_values"],
        output_names=["image_embeds"],
        dynamic_axes={"pixel_values": {0: "batch"}, "image_embeds": {0: "batch"}},
        dynamo=False,
    )
    quantize_dynamic(to / "fp32.onnx", to / "int8.onnx", per_channel=True)
    preprocessor = {
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "image_mean": MEAN.tolist(),
        "image_std": STD.tolist(),
        "image_processor_type": "CLIPImageProcessor",
    }
    (to / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    make_checkpoint(folder() / "clip_checkpoint", preprocessor)


def make_checkpoint(to: Path, preprocessor: dict[str, object]) -> None:
    """Write a CLIP checkpoint that infinity can load, with the tests' tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    CLIPModel(CLIPConfig(vision_config={"patch_size": 32})).save_pretrained(to)
    (to / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tokenizer = Path(__file__).parents[1] / "tests" / "text" / "fixtures" / "tokenizer.json"
    shutil.copy(tokenizer, to)
    described = {"tokenizer_class": "CLIPTokenizerFast", "model_max_length": 77}
    (to / "tokenizer_config.json").write_text(json.dumps(described))


async def aioembed_engine(
    precision: str, stack: AsyncExitStack, threads: dict[str, int] | None = None
) -> Call:
    from aioembed import CLIP_PREPROCESSING, ImageEmbeddings, Threads

    prepared = CLIP_PREPROCESSING.model_copy(update={"layout": "patches", "patch_size": 32})
    path = program(f"clip_fast_{precision}")
    model = await stack.enter_async_context(
        ImageEmbeddings(str(path), preprocessing=prepared, threads=Threads(**(threads or {})))
    )
    await model.load()
    return model.forward


async def onnx_engine(precision: str, stack: AsyncExitStack) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_model(precision))
    pool = stack.enter_context(ThreadPoolExecutor())
    loop = asyncio.get_running_loop()

    def embed(item: Item) -> object:
        return session.run(None, {"pixel_values": normalized(item)})

    return lambda item: loop.run_in_executor(pool, embed, item)


def fastembed_folder(precision: str) -> Path:
    model = onnx_model(precision)
    path = folder() / f"fastembed_{precision}"
    if not path.exists():
        path.mkdir()
        (path / "model.onnx").symlink_to(model)
        shutil.copy(model.with_name("preprocessor_config.json"), path)
    return path


async def fastembed_engine(precision: str, stack: AsyncExitStack) -> Call:
    from fastembed import ImageEmbedding

    path = fastembed_folder(precision)
    name = "Qdrant/clip-ViT-B-32-vision"
    model = ImageEmbedding(name, specific_model_path=str(path), local_files_only=True)
    pool = stack.enter_context(ThreadPoolExecutor())
    loop = asyncio.get_running_loop()

    def embed(item: Item) -> object:
        return next(iter(model.embed([as_image(item)])))

    return lambda item: loop.run_in_executor(pool, embed, item)


async def infinity_engine(_precision: str, stack: AsyncExitStack) -> Call:
    """Infinity's engine on torch; it has its own random weights, of the same shapes."""
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs
    from transformers import CLIPModel

    features = CLIPModel.get_image_features

    def tensor_features(self: CLIPModel, **inputs: torch.Tensor) -> torch.Tensor:
        found = features(self, **inputs)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    setattr(CLIPModel, "get_image_features", tensor_features)  # noqa: B010  # newer transformers than it knows
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(folder() / "clip_checkpoint"),
            engine="torch",
            device="cpu",
            dtype="float32",
            bettertransformer=False,
            model_warmup=False,
            compile=False,
        )
    )
    await stack.enter_async_context(engine)

    async def embed(item: Item) -> object:
        return await engine.image_embed(images=[as_image(item)])

    return embed


async def stock_engine(precision: str, stack: AsyncExitStack) -> Call:
    import torch
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program(f"clip_fast_{precision}"))
    forward = loaded.load_method("forward")
    assert forward is not None
    pool = stack.enter_context(ThreadPoolExecutor(1))
    loop = asyncio.get_running_loop()

    def embed(item: Item) -> object:
        return forward.execute([torch.from_numpy(patches(item))])

    return lambda item: loop.run_in_executor(pool, embed, item)


ENGINES = {
    "aioembed": aioembed_engine,
    "onnx": onnx_engine,
    "fastembed": fastembed_engine,
    "infinity": infinity_engine,
    "stock": stock_engine,
}


async def open_engine(name: str, precision: str, stack: AsyncExitStack) -> Call:
    """Return what embeds one image.

    Args:
        name: Of an engine; `aioembed:replicas=2` or `aioembed:inference=1` names our `Threads`.
        precision: `fp32` or `int8`.
        stack: Closes what was opened.
    """
    engine, _, written = name.partition(":")
    if engine != "aioembed":
        return await ENGINES[engine](precision, stack)
    pairs = (pair.split("=") for pair in written.split(",") if pair)
    return await aioembed_engine(precision, stack, {key: int(value) for key, value in pairs})


def make_models(precision: str) -> None:
    """See to it that every engine finds its model."""
    program(f"clip_fast_{precision}")
    onnx_model(precision)


if __name__ == "__main__":
    make_onnx()
