"""Search a folder of photographs by picture, in the terminal; runs without a network.

    python examples/photo_search [FOLDER] [--index FILE] [--model MODEL] [--text-model MODEL]

Without a folder it draws some scenes and their near-duplicates. Type the path or the name of a
picture and press Enter; Enter on a result searches for more like it. With a text model that goes
with the image model, words find pictures too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from photo_app import PhotoSearch

from aioembed.testing.scenes import draw_scenes, near_duplicates


def draw_album(folder: Path) -> None:
    for name, scene in draw_scenes().items():
        scene.save(folder / f"{name}.png")
        for change, picture in near_duplicates(scene).items():
            picture.save(folder / f"{name}-{change}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--index", type=Path, help="by default .photo-search.db in the folder")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--text-model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.folder is None:
            draw_album(folder)
        PhotoSearch(
            folder,
            options.index or folder / ".photo-search.db",
            model=options.model,
            text_model=options.text_model,
        ).run()


if __name__ == "__main__":
    main()
