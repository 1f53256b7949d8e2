"""The doctor's whole examination: the machine, the cache folder, and one embedding."""

from __future__ import annotations

import time

import numpy as np
from anyio import to_thread

from aioembed import GIST_512, ImageEmbeddings
from aioembed.errors import AioembedError
from aioembed.resources import Cache

from .checks import Check, Verdict, check_cache, machine_checks

__all__ = ["examine"]

_SIDE = 64
_LENGTH_TOLERANCE = 1e-3


async def examine() -> list[Check]:
    """Return what every check found."""
    checks = await to_thread.run_sync(machine_checks)
    checks.append(await to_thread.run_sync(check_cache, Cache().directory))
    checks.append(await _embedding())
    return checks


async def _embedding() -> Check:
    """Embed noise with the embedded model."""
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    begun = time.perf_counter()
    try:
        async with ImageEmbeddings(GIST_512) as model:
            await model.load()
            loaded = time.perf_counter()
            vector = await model.forward(noise)
    except AioembedError as error:
        advice = "install aioembed again (pip install --force-reinstall aioembed)"
        return Check("embedding", Verdict.BROKEN, f"{GIST_512.name}: {error}", advice)
    ended = time.perf_counter()
    length = float(np.linalg.norm(vector))
    found = (
        f"{GIST_512.name} loaded in {(loaded - begun) * 1000:.0f} ms, "
        f"embedded in {(ended - loaded) * 1000:.1f} ms"
    )
    if abs(length - 1) > _LENGTH_TOLERANCE:
        advice = f"the vector has length {length:.4f}, not 1: please report it"
        return Check("embedding", Verdict.BROKEN, found, advice)
    return Check("embedding", Verdict.OK, found)
