"""Draw a model's state with `rich.live.Live` while it is downloaded and used; no network.

    python examples/live_state.py

A hub on loopback replaces the real one. `Live` draws at its own rate: the callback passes it the
latest state, and the event loop never waits for the terminal.
"""

from __future__ import annotations

import tempfile

import anyio
import numpy as np
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings, Status
from aioembed.models import local_path
from aioembed.testing import HubServer

COLOURS = {Status.READY: "green", Status.GENERATING: "yellow", Status.FAILED: "red"}


def draw(model: ImageEmbeddings) -> Panel:
    state, statistics = model.state, model.statistics()
    rows = Table.grid(padding=(0, 1))
    colour = COLOURS.get(state.status, "blue")
    rows.add_row("state", f"[{colour}]{state.status}[/]")
    rows.add_row("download", ProgressBar(total=1, completed=state.download_progress, width=30))
    rows.add_row(
        "", f"{state.downloaded_bytes / 1000:.0f} kB, {state.download_rate / 1000:.0f} kB/s"
    )
    rows.add_row("queue", f"{state.queue_depth}")
    rows.add_row("done", f"{statistics.succeeded} at {statistics.throughput:.0f}/s")
    if state.error is not None:
        rows.add_row("error", str(state.error))
    return Panel(rows, title=model.spec.name, width=60)


async def main(folder: str) -> None:
    shipped = local_path(EFFICIENTNET_LITE0)
    assert shipped is not None
    content = await anyio.Path(shipped).read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (200, 120, 160, 3), dtype=np.uint8)
    async with HubServer(bytes_per_second=len(content) / 2) as hub:
        url = hub.add("someone/lite0", "efficientnet_lite0.pte", content)
        model = ImageEmbeddings(url, cache_dir=folder)
        with Live(draw(model), refresh_per_second=15) as live:
            unsubscribe = model.subscribe(lambda: live.update(draw(model)))
            async with model:
                await model.forward_batch(images)
            unsubscribe()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        anyio.run(main, cache)
