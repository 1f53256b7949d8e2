"""How close exported programs of every family are to transformers, from the file to the vector.

    python benchmarks/export_parity.py [--only WORD...] [--folder DIR] [--photographs DIR]

Models have their full size and seeded random weights, plain or heavy-tailed: the heavy-tailed
ones have outlier channels as trained ViTs do. SigLIP 2 has a small vocabulary, since its size only
adds rows to the table of tokens. Programs come from `aioembed export` and are run by the handle's
`forward`; the reference is transformers' processor or tokenizer and its model in eager mode. An
image program is balanced on every other photograph and compared on all of them.

Prints one row per program: the lowest cosine, the largest difference of a value, how alike the
vectors of different inputs are, the file's size, and the peak memory of the export's process.
Exits with 1 if a row misses its mark: cosine 0.99999 for fp32, 0.999 for int8, 6 GiB. Takes about
a minute per row and 2 GB of disk. `--only` keeps the rows that have all of the words, such as
`siglip2-b16-224 text int8`; `--folder` keeps the checkpoints for the next run, which go into the
temporary folder otherwise. Needs the [export] extra, and the tests of this checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' checkpoints and texts
PHOTOGRAPHS = ROOT.parent / "shared" / "images"
MERGES = ROOT.parent / "shared" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
SUFFIXES = {".jpg", ".jpeg", ".png"}
LOWEST = {"fp32": 0.99999, "int8": 0.999}
MOST_GIB = 6.0


class Case(NamedTuple):
    """One program."""

    model: str
    weights: str
    tower: str
    precision: str
    norm: str


MODELS = {
    "clip-b32": ("image", "text"),
    "openclip-b32-256": ("image",),
    "tinyclip-39m": ("image", "text"),
    "siglip2-b16-224": ("image", "text"),
    "dinov2-s14": ("image",),
    "dinov2-s14-registers": ("image",),
}
"""Models, and the towers of each that are measured."""

CASES = [
    Case(model, weights, tower, precision, norm)
    for model, towers in MODELS.items()
    for weights, tower, precision in product(("plain", "heavy-tailed"), towers, ("fp32", "int8"))
    for norm in (("ln", "bn") if model == "clip-b32" else ("auto",))
]


@dataclass(frozen=True)
class Row:
    """What came out of one program."""

    cosine: float
    difference: float
    alike: float
    inputs: int
    megabytes: float
    export_gib: float
    delegate_calls: int

    def meets(self, case: Case) -> bool:
        """Whether the cosine and the memory of the export meet the goals."""
        return self.cosine >= LOWEST[case.precision] and self.export_gib < MOST_GIB


# Steps, each in its own process: `python export_parity.py STEP FOLDER CASE...`


def make_checkpoint(folder: Path, case: Case) -> None:
    """Save the case's model, with CLIP's tokenizer or one like SigLIP 2's."""
    from tests.export.checkpoints import FULL, make_heavy_tailed, rewrite, save, save_tokenizer
    from tests.text.clip_bpe import END, START, read_merges, tokenizer_json

    to = checkpoint(folder, case)
    kind, config, size = FULL[case.model]
    content = None
    if kind == "CLIP":
        tokenizer = ROOT / "tests" / "text" / "fixtures" / "tokenizer.json"
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        if MERGES.is_file():
            content = tokenizer_json(read_merges(MERGES))
        vocabulary = content["model"]["vocab"]
        special = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
        config = config | {"text": config["text"] | special}
    save(to, kind, config, image_size=size)
    if case.weights == "heavy-tailed":
        rewrite(to, make_heavy_tailed)
    if content is None:
        save_tokenizer(to)
    else:
        (to / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def checkpoint(folder: Path, case: Case) -> Path:
    """Return where a case's checkpoint lies."""
    return folder / f"{case.model}-{case.weights}"


def make_reference(folder: Path, case: Case) -> None:
    """Save transformers' vectors of all inputs, of length 1."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint(folder, case)).eval()
    with torch.no_grad():
        if case.tower == "image":
            embed = getattr(model, "get_image_features", model)
            rows = [embed(pixels).pooler_output for pixels in images(folder, case)]
        else:
            rows = [model.get_text_features(ids).pooler_output for ids in token_ids(folder, case)]
        vectors = torch.nn.functional.normalize(torch.cat(rows).double(), dim=-1)
    np.save(reference_file(folder, case), vectors.numpy())


def images(folder: Path, case: Case) -> Iterator[Any]:
    """Iterate over the photographs as transformers prepares them."""
    import transformers
    from PIL import Image

    source = checkpoint(folder, case)
    kind = json.loads((source / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, f"{kind}Pil").from_pretrained(source)
    for file in photographs(folder):
        opened = Image.open(file).convert("RGB")
        yield processor(images=[opened], return_tensors="pt")["pixel_values"]


def token_ids(folder: Path, case: Case) -> Iterator[Any]:
    """Iterate over the ids of the texts as transformers tokenises them."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    source = checkpoint(folder, case)
    if case.model.startswith("siglip"):
        padded = PreTrainedTokenizerFast.from_pretrained(source)
        for text in texts():
            given = {"padding": "max_length", "truncation": True, "max_length": 64}
            yield padded(text.lower(), return_tensors="pt", **given)["input_ids"]
        return
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    merges: Any = [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in content["model"]["merges"]
    ]
    tokenizer = CLIPTokenizer(vocab=content["model"]["vocab"], merges=merges)
    for text in texts():
        yield tokenizer(text, truncation=True, max_length=77, return_tensors="pt")["input_ids"]


def export(folder: Path, case: Case) -> None:
    """Export the case's program, and print what the exporter says of it."""
    from aioembed.export import ExportOptions, export_model

    given: dict[str, Any] = {**case._asdict(), "calibrate": folder / "calibrate"}
    del given["model"], given["weights"]
    options = ExportOptions(**given)
    report = export_model(checkpoint(folder, case), folder / "program.pte", options)
    print(f"{report}\n", file=sys.stderr)
    (folder / "report.json").write_text(json.dumps({"delegate_calls": report.delegate_calls}))


def embed(folder: Path, case: Case) -> None:
    """Save the vectors that the handle gives."""
    import anyio

    from aioembed import ImageEmbeddings, TextEmbeddings

    async def vectors() -> list[np.ndarray]:
        program = str(folder / "program.pte")
        if case.tower == "image":
            async with ImageEmbeddings(program) as images:
                return [await images.forward(file) for file in photographs(folder)]
        tokenizer = checkpoint(folder, case) / "tokenizer.json"
        async with TextEmbeddings(program, tokenizer=tokenizer, truncate="silent") as model:
            return [await model.forward(text) for text in texts()]

    np.save(folder / "ours.npy", np.stack(anyio.run(vectors)).astype(np.float64))


STEPS = {step.__name__: step for step in (make_checkpoint, make_reference, export, embed)}


def texts() -> list[str]:
    from tests.text.strings import texts as all_texts

    every = all_texts()
    return [*every[:15], *every[15::20]]


def photographs(folder: Path) -> list[Path]:
    return sorted((folder / "photographs").iterdir())


def reference_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.model}-{case.weights}-{case.tower}.npy"


# The run


def run(step: str, folder: Path, case: Case) -> float:
    """Run a step in a child process and return its peak memory in GiB."""
    command = [sys.executable, "-W", "ignore", __file__, step, str(folder), *case]
    child = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{step} failed for {' '.join(case)}")
    return usage.ru_maxrss / 2**20


def measure(folder: Path, case: Case) -> Row:
    """Export a case's program, compare its vectors, and remove it."""
    if not (checkpoint(folder, case) / "tokenizer.json").is_file():
        run("make_checkpoint", folder, case)
    if not reference_file(folder, case).is_file():
        run("make_reference", folder, case)
    export_gib = run("export", folder, case)
    run("embed", folder, case)
    ours, wanted = np.load(folder / "ours.npy"), np.load(reference_file(folder, case))
    others = (wanted @ wanted.T)[~np.eye(len(wanted), dtype=bool)]
    row = Row(
        cosine=float(((ours * wanted).sum(1) / np.linalg.norm(ours, axis=1)).min()),
        difference=float(np.abs(ours - wanted).max()),
        alike=float(others.mean()),
        inputs=len(wanted),
        megabytes=(folder / "program.pte").stat().st_size / 1e6,
        export_gib=export_gib,
        **json.loads((folder / "report.json").read_text()),
    )
    (folder / "program.pte").unlink()
    return row


def prepare(folder: Path, source: Path) -> None:
    """Lay the photographs out: all of them, and every other one to calibrate on."""
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in SUFFIXES)
    for name, chosen in (("photographs", files), ("calibrate", files[::2])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in chosen:
            shutil.copy(file, folder / name)


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        STEPS[sys.argv[1]](Path(sys.argv[2]), Case(*sys.argv[3:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print a JSON object per row")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="export-parity-") as scratch:
        folder = options.folder or Path(scratch)
        prepare(folder, options.photographs)
        if not options.json:
            print("| model | weights | tower | precision | norms | lowest cosine | difference "
                  "| inputs | alike | MB | export's peak GiB | delegate calls |")  # fmt: skip
            print("|" + "---|" * 12)
        for case in CASES:
            if set(options.only) <= set(case):
                row = measure(folder, case)
                missed += not row.meets(case)
                print(json.dumps(case._asdict() | asdict(row)) if options.json else line(case, row),
                      flush=True)  # fmt: skip
    return 1 if missed else 0


def line(case: Case, row: Row) -> str:
    cells = (
        *case,
        f"{row.cosine:.7f}{'' if row.meets(case) else ' (missed)'}",
        f"{row.difference:.1e}",
        row.inputs,
        f"{row.alike:.2f}",
        f"{row.megabytes:.1f}",
        f"{row.export_gib:.2f}",
        row.delegate_calls,
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
