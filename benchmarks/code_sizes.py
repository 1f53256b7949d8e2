"""Sizes of modules and functions, here and in libraries that are known for good code.

    python benchmarks/code_sizes.py src/aioembed:tests .venv/.../anyio:anyio-4.12.0/tests

Each argument is a folder of source, and after a colon that of its tests. Sizes are lines as they
stand, from `def` to the last line; a test's functions are not counted among them.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

_LONG_MODULE = 300
_LONG_FUNCTION = 30
_WITH_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Sizes:
    """Lines of a library: in all, by module, by function, and of which kind."""

    lines: int = 0
    comments: int = 0
    docstrings: int = 0
    modules: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Count one module in."""
        text = path.read_text(encoding="utf-8")
        count = len(text.splitlines())
        self.lines += count
        self.modules[str(path)] = count
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments += len({one.start[0] for one in tokens if one.type == tokenize.COMMENT})
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[f"{path}:{node.lineno} {node.name}"] = _length(node)
            if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node):
                self.docstrings += _length(node.body[0])


def _length(node: ast.AST) -> int:
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
    return int(last) - int(first) + 1


def _without_docstring(path: Path) -> dict[str, int]:
    """Return the lines of each function less its docstring: that is what has to be understood."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = _length(node.body[0]) if ast.get_docstring(node) else 0
            found[f"{path}:{node.lineno} {node.name}"] = _length(node) - text
    return found


def measure(folder: Path) -> Sizes:
    sizes = Sizes()
    for path in sorted(folder.rglob("*.py")):
        if "_tests" not in path.parts:
            sizes.add(path)
            sizes.functions.update(_without_docstring(path))
    return sizes


def _spread(values: list[int]) -> str:
    return f"{median(values):.0f} / {quantiles(values, n=10)[-1]:.0f} / {max(values)}"


def _row(argument: str) -> str:
    source, _, tests = argument.partition(":")
    sizes = measure(Path(source))
    tested = measure(Path(tests)).lines if tests else 0
    cells = [
        Path(source).name,
        f"{sizes.lines:,}",
        _spread([count for count in sizes.modules.values() if count > 1]),
        _spread(list(sizes.functions.values())),
        f"{sizes.comments / sizes.lines:.1%}",
        f"{sizes.docstrings / sizes.lines:.1%}",
        f"{tested / sizes.lines:.2f}" if tested else "not at hand",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=["src/aioembed:tests"])
    parser.add_argument("--long", action="store_true", help="list what is long in the first one")
    options = parser.parse_args()
    print("| | lines | module | function | comments | docstrings | tests to source |")
    print("|---|---|---|---|---|---|---|")
    for argument in options.libraries:
        print(_row(argument))
    if options.long:
        sizes = measure(Path(options.libraries[0].partition(":")[0]))
        long = {name: count for name, count in sizes.modules.items() if count > _LONG_MODULE}
        long |= {name: count for name, count in sizes.functions.items() if count > _LONG_FUNCTION}
        print(*(f"{count:5} {name}" for name, count in long.items()), sep="\n")


if __name__ == "__main__":
    main()
