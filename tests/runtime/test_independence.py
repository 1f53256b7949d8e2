from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aioembed import runtime

Run = Callable[..., "subprocess.CompletedProcess[str]"]
_LIBRARIES = Path(runtime.__file__).parent

_OURS = """
def ours():
    import numpy as np
    from aioembed.runtime import Program, set_thread_count
    set_thread_count(3)
    program = Program.load(sys.argv[1])
    return lambda: program.run(np.ones((1, 8), np.float32))[0].tolist()
"""
_STOCK = """
def stock():
    import torch
    from executorch.runtime import Runtime
    program = Runtime.get().load_program(sys.argv[1])
    forward = program.load_method("forward")
    return lambda: forward.execute([torch.ones(1, 8)])[0].tolist()
"""


def test_neither_torch_nor_the_executorch_package_is_touched(programs: Path, run_code: Run) -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["executorch"] = None
{_OURS}
print(ours()())
mapped = {{line.split()[-1] for line in open("/proc/self/maps") if "executorch" in line}}
print(*mapped, sep="\\n")
"""
    printed = run_code(code, programs / "linear_xnnpack.pte").stdout.splitlines()
    assert printed[0].startswith("[[1.27")
    libraries = {Path(line) for line in printed[1:]}
    assert libraries
    assert {library.parent for library in libraries} == {_LIBRARIES}


@pytest.mark.export
@pytest.mark.parametrize("order", ["ours, stock", "stock, ours"])
def test_works_beside_the_stock_package_whichever_comes_first(
    programs: Path, run_code: Run, order: str
) -> None:
    code = f"""
import sys
{_OURS}{_STOCK}
first, second = [make() for make in ({order})]
results = [call() for _ in range(3) for call in (first, second)]
assert all(result == results[0] for result in results), results
print(results[0])
"""
    done = run_code(code, programs / "linear_xnnpack.pte")
    assert done.stdout.startswith("[[1.27")
    assert "register_pal() called multiple times" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files' tags with patchelf's names")
def test_the_libraries_lie_beside_the_extension_under_their_own_names() -> None:
    names = {path.name for path in _LIBRARIES.glob("*.so")}
    assert {name for name in names if name.startswith("lib")} == {
        "libaioembed_libexecutorch.so",
        "libaioembed_libexecutorch_backend_xnnpack.so",
        "libaioembed_libexecutorch_kernels_optimized.so",
        "libaioembed_libexecutorch_threadpool.so",
    }


@pytest.mark.skipif(importlib.util.find_spec("nanobind") is None, reason="nanobind not installed")
def test_the_checked_in_stub_is_current(tmp_path: Path) -> None:
    """If not: python -m nanobind.stubgen -q -D --exclude-values -m aioembed.runtime._native
    -o src/aioembed/runtime/_native.pyi
    """
    fresh = tmp_path / "_native.pyi"
    options = ["-q", "-D", "--exclude-values", "-m", "aioembed.runtime._native", "-o", str(fresh)]
    subprocess.run([sys.executable, "-m", "nanobind.stubgen", *options], check=True)
    checked_in = Path(__file__).resolve().parents[2] / "src/aioembed/runtime/_native.pyi"
    assert fresh.read_text() == checked_in.read_text()
