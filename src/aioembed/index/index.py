"""An index of vectors in a file: add, remove, search, follow a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import (
    IncompatibleSpaces,
    InvalidConfig,
    InvalidUserInput,
    WrongDimensions,
    shorten,
)
from ..handle import EmbeddingHandle
from ..image import ImageEmbeddings
from ..models import EmbeddingSpace
from .database import MOST_HITS
from .records import Hit, SyncReport
from .storage import Storage
from .sync import FolderSync, OnProgress

__all__ = ["EmbeddingIndex"]

InputT = TypeVar("InputT")
Vector = NDArray[np.float32]


class EmbeddingIndex:
    """Vectors by key in one SQLite file, searched by sqlite-vec; use it with `async with`.

    A file holds the vectors of one space: that of its first vectors, or the one given here. All
    work on it is done in a worker thread. What a call has stored stays, even if the process is
    killed right after. Several processes may use one file; one writes at a time.

    Args:
        path: Of the file; made where there is none, in a folder that exists.
        space: The space its vectors live in, such as `model.space`. Needed to `add` vectors to a
            new file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, space: EmbeddingSpace | None = None
    ) -> None:
        self._path = Path(path)
        self._wanted = space
        self._found: tuple[EmbeddingSpace, int] | None = None
        self._storage = Storage(self._path)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._path

    @property
    def space(self) -> EmbeddingSpace | None:
        """The space of the vectors; None for a new file for which none was given."""
        return self._found[0] if self._found else self._wanted

    @property
    def embedding_dim(self) -> int | None:
        """Values per vector; None before the first."""
        return self._found[1] if self._found else None

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            IndexFileError: It cannot be opened.
            IndexLocked: Another process holds its lock for longer than 5 s.
            IndexDamaged: It is damaged, or the file of something else.
            IncompatibleSpaces: Its vectors live in another space than the one given.
            MissingExtra: sqlite-vec cannot be loaded into SQLite.
        """
        if self._storage.is_open:
            raise InvalidConfig("the index is in use by another `async with` already")
        await self._storage.open()
        try:
            await self._look_again()
            if self._wanted is not None:
                self._check_searchable(self._wanted)
        except BaseException:
            await self._storage.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._storage.aclose()

    # --- vectors

    async def add(self, key: str, embedding: ArrayLike) -> None:
        """Store a vector, in place of the key's former one. On the disk when it returns.

        Args:
            key: Of the vector.
            embedding: `(dim,)`, not all zeros.

        Raises:
            WrongDimensions: Of another shape than the index's vectors.
            InvalidUserInput: The key is no text, or the vector has zeros or no numbers only.
            InvalidConfig: A new file, and no space was given.
            IndexFileError: The file cannot be written.
        """
        await self.add_many([(key, embedding)])

    async def add_many(self, items: Iterable[tuple[str, ArrayLike]]) -> None:
        """Store vectors by their keys: all of them or, if this fails or is cancelled, none.

        Args:
            items: Keys and vectors; of a key that comes twice the last one counts.

        Raises:
            WrongDimensions: A vector of another shape than the index's.
            InvalidUserInput: A key is no text, or a vector has zeros or no numbers only.
            InvalidConfig: A new file, and no space was given.
            IndexFileError: The file cannot be written.
        """
        await self._look_again()
        vectors = [(_checked_key(key), self._checked(vector)) for key, vector in items]
        if not vectors:
            return
        if self.space is None:
            raise InvalidConfig(
                "a new index does not know the space of its vectors: open it with "
                "EmbeddingIndex(path, space=model.space)"
            )
        dims = {vector.size for _, vector in vectors}
        if len(dims) > 1:
            raise WrongDimensions(f"vectors of one index have one size, not {sorted(dims)}")
        await self._adopt(self._wanted or self.space, dims.pop())
        await self._storage.run(lambda database: database.put(vectors))

    async def remove(self, *keys: str) -> int:
        """Remove vectors, and return how many of the keys had one."""
        return await self._storage.run(lambda database: database.remove(keys))

    async def contains(self, key: str) -> bool:
        """Return whether a key has a vector."""
        return (await self._storage.run(lambda database: database.contains([key])))[0]

    async def count(self) -> int:
        """Return how many vectors there are."""
        return await self._storage.run(lambda database: database.count())

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""
        return await self._storage.run(lambda database: database.keys(prefix))

    async def get(self, key: str) -> Vector | None:
        """Return the float32 vector `(dim,)` of a key, None where it has none."""
        await self._look_again()
        if self._found is None:
            return None
        return await self._storage.run(lambda database: database.vector(key))

    # --- searching

    async def search(self, embedding: ArrayLike, k: int = 10) -> list[Hit]:
        """Return the vectors nearest to one, by their cosine similarity; exact.

        Args:
            embedding: `(dim,)`, of any length above 0.
            k: How many, 1 to 4096.

        Returns:
            At most `k` hits, the nearest first.

        Raises:
            WrongDimensions: Of another shape than the index's vectors.
            InvalidConfig: `k` is out of its range.
            IndexFileError: The file cannot be read.
        """
        if not 1 <= k <= MOST_HITS:
            raise InvalidConfig(f"k is 1 to {MOST_HITS}, not {k}")
        await self._look_again()
        if self._found is None:
            return []
        vector = self._checked(embedding)
        return await self._storage.run(lambda database: database.search(vector, k))

    async def search_item(
        self, item: InputT, model: EmbeddingHandle[InputT], k: int = 10
    ) -> list[Hit]:
        """Embed something, and return what is nearest to it.

        Args:
            item: What `model.forward` takes: a picture or, for a text model, words.
            model: Of the index's space.
            k: How many, 1 to 4096.

        Raises:
            IncompatibleSpaces: The model's vectors do not compare with the index's.
            AioembedError: As `model.forward` and `search`.
        """
        await model.load()
        await self._look_again()
        self._check_searchable(model.space)
        return await self.search(await model.forward(item), k)

    # --- following a folder

    async def sync(
        self,
        folder: str | os.PathLike[str],
        model: ImageEmbeddings,
        *,
        prune: bool = False,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Embed the pictures below a folder that are new or changed; remove those that are gone.

        A picture's key is its absolute path. One whose time and size are those of before is not
        read, one whose content is that of before is not embedded. A picture that fails is no
        error: `errors` says why it has no vector. What is done is committed as it goes on, so
        that a sync that was cancelled or killed goes on where it was.

        Pictures that are gone are kept, and counted as `missing`, where a drive may not be
        mounted: if they are more than half of those below the folder, if their folder is there but
        has no picture any more, or if a link to them or to their folder leads nowhere.

        Args:
            folder: Its subfolders count, symbolic links to folders too.
            model: Of the index's space; loaded if it is not.
            prune: Remove what is missing, too.
            on_progress: Called on the event loop with the report after each change of it; must
                not block.

        Raises:
            FileReadFailed: The folder is missing or cannot be listed; nothing was removed.
            IncompatibleSpaces: The index's vectors live in another space, or are of another
                precision.
            IndexFileError: The file cannot be read or written.
            AioembedError: The model could not be loaded.
        """
        await model.load()
        await self._adopt(model.space, model.embedding_dim)
        run = FolderSync(
            _absolute(folder), model, self._storage, prune=prune, on_progress=on_progress
        )
        return await run.run()

    async def errors(self, folder: str | os.PathLike[str]) -> dict[str, str]:
        """Return why pictures below a synced folder have no vector, by their paths."""
        root = _absolute(folder)
        records = await self._storage.run(lambda database: database.records(root))
        return {path: record.error for path, record in records.items() if record.error}

    # ---

    async def _look_again(self) -> None:
        """Learn the space that another process may have given a new file."""
        if self._found is None:
            self._found = await self._storage.run(lambda database: database.space())

    async def _adopt(self, space: EmbeddingSpace, dim: int) -> None:
        """Give a new file its space; refuse to store another one's vectors in an old one."""
        if self._found is None:
            self._found = await self._storage.run(lambda database: database.adopt(space, dim))
        found, found_dim = self._found
        if found != space or found_dim != dim:
            raise IncompatibleSpaces(
                f"the index {shorten(self._path)} holds vectors of the space {found.id} "
                f"({found_dim} values), not of {space.id} ({dim} values): use the model it was "
                "made with, or index into another file"
            )

    def _check_searchable(self, space: EmbeddingSpace) -> None:
        if self._found is not None and not self._found[0].is_compatible(space):
            raise IncompatibleSpaces(
                f"the index {shorten(self._path)} holds vectors of the space {self._found[0].id}, "
                f"which do not compare with those of {space.id}: use the model it was made with"
            )

    def _checked(self, embedding: ArrayLike) -> Vector:
        vector = np.ascontiguousarray(embedding, dtype=np.float32)
        if vector.ndim != 1 or (self._found is not None and vector.size != self._found[1]):
            wanted = f"({self._found[1]},)" if self._found else "(dim,)"
            raise WrongDimensions(f"the index takes vectors {wanted}, not {vector.shape}")
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise InvalidUserInput("a vector of zeros, NaN or infinity has no direction")
        return vector


def _absolute(folder: str | os.PathLike[str]) -> str:
    return os.path.abspath(folder)  # noqa: PTH100  # resolve() would follow links


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not key or not _is_storable(key):
        raise InvalidUserInput(f"a key is a text that is not empty, not {shorten(repr(key))}")
    return key


def _is_storable(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
