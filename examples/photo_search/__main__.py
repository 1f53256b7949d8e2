"""Search a folder of photographs by picture, in the terminal; runs without a network.

    python examples/photo_search [FOLDER] [--index FILE] [--model MODEL] [--text-model MODEL]

Without a folder it shows the photographs of `aioembed demo` and their near-duplicates. Type the
path or the name of a picture and press Enter; Enter on a result searches for more like it. With a
text model that goes with the image model, words find pictures too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from photo_app import PhotoSearch

from aioembed.testing.photographs import near_duplicates, photographs


def make_album(folder: Path) -> None:
    for name, photograph in photographs().items():
        photograph.save(folder / f"{name}.png")
        for change, picture in near_duplicates(photograph).items():
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
            make_album(folder)
        PhotoSearch(
            folder,
            options.index or folder / ".photo-search.db",
            model=options.model,
            text_model=options.text_model,
        ).run()


if __name__ == "__main__":
    main()
