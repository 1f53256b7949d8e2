"""The doctor's whole examination, and its last check: one embedding, in a process that may die."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TypedDict

import anyio
import numpy as np
from anyio import to_thread

from aioembed import GIST_512, ImageEmbeddings
from aioembed._child import python_child
from aioembed.errors import AioembedError
from aioembed.resources import Cache

from .check_install import install_checks
from .check_machine import check_cache, check_network, machine_checks
from .checks import Check, Verdict

__all__ = ["examine"]

_SIDE = 64
_LENGTH_TOLERANCE = 1e-3
_SECONDS = 120.0
_CHILD = f"{__name__}:report_trial"
_SEE_ABOVE = "if no line above says why, install again: pip install --force-reinstall aioembed"


class _Trial(TypedDict):
    """What the child found: seconds and the vector's length, or the error."""

    error: str
    load_seconds: float
    embed_seconds: float
    length: float


async def examine() -> list[Check]:
    """Return what every check found."""
    checks = await to_thread.run_sync(install_checks)
    checks += await to_thread.run_sync(machine_checks)
    checks.append(await check_network())
    checks.append(await to_thread.run_sync(check_cache, Cache().directory))
    checks.append(await _embedding())
    return checks


async def _embedding() -> Check:
    """Embed noise with the embedded model, where a crash is a finding."""
    command, environment = await to_thread.run_sync(python_child, _CHILD)
    try:
        with anyio.fail_after(_SECONDS):
            child = await anyio.run_process(command, check=False, env=environment)
    except TimeoutError:
        return _broken(f"did not end within {_SECONDS:g} s", _SEE_ABOVE)
    if child.returncode < 0:
        return _died(signal.Signals(-child.returncode))
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return _broken(lines[-1] if lines else f"exit code {child.returncode}", _SEE_ABOVE)
    trial: _Trial = json.loads(child.stdout)
    if trial["error"]:
        return _broken(trial["error"], _SEE_ABOVE)
    found = (
        f"{GIST_512.name} loaded in {trial['load_seconds'] * 1000:.0f} ms, "
        f"embedded in {trial['embed_seconds'] * 1000:.1f} ms"
    )
    if abs(trial["length"] - 1) > _LENGTH_TOLERANCE:
        return _broken(found, f"the vector has length {trial['length']:.4f}, not 1: report it")
    return Check("embedding", Verdict.OK, found)


def _broken(found: str, advice: str) -> Check:
    return Check("embedding", Verdict.BROKEN, f"{GIST_512.name}: {found}", advice)


def _died(cause: signal.Signals) -> Check:
    reasons = {
        signal.SIGILL: "the processor lacks an instruction that the runtime uses: see `processor`",
        signal.SIGKILL: "the system ended it, most often because memory ran out",
    }
    return _broken(f"ended by {cause.name}", reasons.get(cause, _SEE_ABOVE))


def report_trial() -> None:
    """Write what the trial found to stdout, for the process that started it."""
    sys.stdout.write(json.dumps(anyio.run(_try_embedding)))


async def _try_embedding() -> _Trial:
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    begun = time.perf_counter()
    try:
        async with ImageEmbeddings(GIST_512) as model:
            await model.load()
            loaded = time.perf_counter()
            vector = await model.forward(noise)
    except AioembedError as error:
        return {"error": str(error), "load_seconds": 0, "embed_seconds": 0, "length": 0}
    return {
        "error": "",
        "load_seconds": loaded - begun,
        "embed_seconds": time.perf_counter() - loaded,
        "length": float(np.linalg.norm(vector)),
    }
