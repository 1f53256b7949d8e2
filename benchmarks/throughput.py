"""Images per second, latency and loop stalls of many callers, against peers in the same run.

    python benchmarks/throughput.py [--callers 1 8 32 128] [--seconds 4] [--rounds 1]
        [--precisions fp32 int8] [--inputs array jpeg] [--engines ...]

Every engine runs in a process of its own, by turns. `loop` is a plain blocking loop over this
library's native call with Pillow, which has no callers. `onnx` is a thread pool over one ONNX
Runtime session (fp32, or quantised dynamically to int8), `fastembed` its image model over the
same ONNX file, `stock` the executorch package's own binding in a worker thread. The weights are
random; `array` inputs are uint8 224 x 224 arrays, `jpeg` are JPEGs of 640 x 480.
Making the programs needs the [export] extra, onnx and onnxscript. Peers that are not installed
are left out with a word.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from programs import folder, program

ENGINES = ("loop", "aioembed", "onnx", "fastembed", "infinity", "stock")
PERIOD = 0.001
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
        subprocess.run([sys.executable, "-W", "ignore", __file__, "--make-onnx"], check=True)
    return path


def make_onnx() -> None:
    """Write the tower of `clip_image_fp32` as ONNX, fp32 and int8, in fastembed's layout."""
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    class ImageTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = CLIPVisionConfig(hidden_size=768, patch_size=32, projection_dim=512)
            self.tower = CLIPVisionModelWithProjection(config)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            embeds: torch.Tensor = self.tower(pixel_values=pixel_values).image_embeds
            return embeds

    to = folder() / "clip_image"
    to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(20230131)
    torch.onnx.export(
        ImageTower().eval(),
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


async def aioembed_engine(precision: str, stack: AsyncExitStack) -> Call:
    from aioembed import CLIP_PREPROCESSING, ImageEmbeddings

    prepared = CLIP_PREPROCESSING.model_copy(update={"layout": "patches", "patch_size": 32})
    path = program(f"clip_fast_{precision}")
    model = await stack.enter_async_context(ImageEmbeddings(str(path), preprocessing=prepared))
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


async def fastembed_engine(precision: str, stack: AsyncExitStack) -> Call:
    from fastembed import ImageEmbedding

    path = onnx_model(precision)
    name = "Qdrant/clip-ViT-B-32-vision"
    if not (path.parent / "model.onnx").exists():
        (path.parent / "model.onnx").symlink_to(path)
    model = ImageEmbedding(name, specific_model_path=str(path.parent), local_files_only=True)
    pool = stack.enter_context(ThreadPoolExecutor())
    loop = asyncio.get_running_loop()

    def embed(item: Item) -> object:
        return next(iter(model.embed([as_image(item)])))

    return lambda item: loop.run_in_executor(pool, embed, item)


async def infinity_engine(_precision: str, stack: AsyncExitStack) -> Call:
    """Infinity's engine on torch; it has random weights of its own, of the same shapes."""
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


async def heartbeat(stalls: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PERIOD)
        stalls.append(time.perf_counter() - before - PERIOD)


async def measure(call: Call, items: list[Item], callers: int, seconds: float) -> dict[str, float]:
    stalls: list[float] = []
    latencies: list[float] = []
    source = itertools.cycle(items)
    for _ in range(2):
        await call(next(source))
    beating = asyncio.create_task(heartbeat(stalls))
    await asyncio.sleep(10 * PERIOD)
    stalls.clear()
    cpu, started = time.process_time(), time.perf_counter()

    async def caller() -> None:
        while (began := time.perf_counter()) < started + seconds:
            await call(next(source))
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - started
    beating.cancel()
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "rate": len(latencies) / elapsed,
        "p50": cuts[49] * 1e3,
        "p99": cuts[98] * 1e3,
        "stall": max(stalls) * 1e3,
        "stall99": statistics.quantiles(stalls, n=100, method="inclusive")[98] * 1e3,
        "cpu": (time.process_time() - cpu) / elapsed,
    }


def plain_loop(precision: str, items: list[Item], seconds: float) -> dict[str, float]:
    from aioembed.runtime import Program

    loaded = Program.load(program(f"clip_fast_{precision}"))
    source = itertools.cycle(items)
    for _ in range(2):
        loaded.run(patches(next(source)))
    latencies: list[float] = []
    cpu, started = time.process_time(), time.perf_counter()
    while (began := time.perf_counter()) < started + seconds:
        loaded.run(patches(next(source)))
        latencies.append(time.perf_counter() - began)
    elapsed = time.perf_counter() - started
    return {
        "rate": len(latencies) / elapsed,
        "p50": statistics.median(latencies) * 1e3,
        "p99": statistics.quantiles(latencies, n=100, method="inclusive")[98] * 1e3,
        "stall": max(latencies) * 1e3,
        "stall99": max(latencies) * 1e3,
        "cpu": (time.process_time() - cpu) / elapsed,
    }


async def run_engine(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    makers = {
        "aioembed": aioembed_engine,
        "onnx": onnx_engine,
        "fastembed": fastembed_engine,
        "infinity": infinity_engine,
        "stock": stock_engine,
    }
    items = drawn_images(options.inputs[0])
    async with AsyncExitStack() as stack:
        call = await makers[options.child](options.precisions[0], stack)
        return {
            str(callers): await measure(call, items, callers, options.seconds)
            for callers in options.callers
        }


def in_child(
    engine: str, precision: str, kind: str, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-W", "ignore", __file__, "--child", engine]
    command += ["--precisions", precision, "--inputs", kind, "--seconds", str(options.seconds)]
    command += ["--callers", *map(str, options.callers)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"  {engine} did not run: {done.stderr.strip().splitlines()[-1][:160]}")
        return {}
    result: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(precision: str, kind: str, options: argparse.Namespace) -> None:
    print(
        f"\n{precision}, {kind}: images/s (p50 / p99 ms; longest and p99 stall, ms; CPUs, CPU time)"
    )
    engines = [
        e for e in options.engines if precision == "fp32" or e not in {"fastembed", "infinity"}
    ]
    found: dict[str, list[dict[str, dict[str, float]]]] = {engine: [] for engine in engines}
    for _ in range(options.rounds):
        for engine in engines:
            found[engine].append(in_child(engine, precision, kind, options))
    for callers in map(str, options.callers):
        rates = {}
        for engine in engines:
            runs = [run[key] for run in found[engine] for key in (callers, "loop") if key in run]
            if not runs:
                continue
            figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            rates[engine] = figures["rate"]
            print(
                f"  {callers:>4} callers {engine:10} {figures['rate']:7.1f}/s "
                f"({figures['p50']:7.1f} / {figures['p99']:7.1f}; {figures['stall']:6.1f}, "
                f"{figures['stall99']:5.1f}; {figures['cpu']:.2f}, "
                f"{figures['cpu'] / figures['rate'] * 1e3:.0f} ms each)"
            )
        ours = rates.pop("aioembed", None)
        if ours is not None:
            ratios = ", ".join(f"{ours / rate:.2f} x {engine}" for engine, rate in rates.items())
            print(f"       aioembed = {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--inputs", nargs="+", default=["array", "jpeg"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make-onnx", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_onnx:
        make_onnx()
    elif options.child == "loop":
        items = drawn_images(options.inputs[0])
        print(json.dumps({"loop": plain_loop(options.precisions[0], items, options.seconds)}))
    elif options.child:
        print(json.dumps(asyncio.run(run_engine(options))))
    else:
        for precision in options.precisions:
            program(f"clip_fast_{precision}")
            onnx_model(precision)
            for kind in options.inputs:
                compare(precision, kind, options)


if __name__ == "__main__":
    main()
