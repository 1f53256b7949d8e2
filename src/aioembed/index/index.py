"""An index of vectors in a file: add, remove, search, follow a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import anyio
import numpy as np
import platformdirs
from numpy.typing import ArrayLike, NDArray

from .._tasks import BlockingCall
from ..errors import (
    IncompatibleSpaces,
    IndexFileError,
    InvalidConfig,
    InvalidUserInput,
    WrongDimensions,
    shorten,
)
from ..handle import EmbeddingHandle
from ..image import ImageEmbeddings
from ..models import EmbeddingSpace, ModelSpec, Preprocessing
from ..text import TextEmbeddings
from .database import About, Database, Hit, prefix_below
from .folder import FolderSync, OnProgress, SyncReport, is_unchanged, is_utf8

__all__ = ["EmbeddingIndex", "IndexInfo", "default_index_path"]

InputT = TypeVar("InputT")
R = TypeVar("R")
Vector = NDArray[np.float32]


def default_index_path() -> Path:
    """Return where a user's index is if no other file is named: in the platform's data folder."""
    return platformdirs.user_data_path("aioembed") / "index.db"


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What is known of an index.

    Attributes:
        path: Of its file.
        count: Vectors in it.
        size_bytes: Of the file.
        space: The vectors' space, None before the first.
        embedding_dim: Values per vector, None before the first.
        model: Made the vectors; None where a program added them.
        text_model: Finds them by words; None where none was named.
        preprocessing: For `ImageEmbeddings(info.model, preprocessing=...)`; None where none was
            given.
        folders: Those that were synced, and the patterns that each leaves out.
    """

    path: Path
    count: int
    size_bytes: int
    space: EmbeddingSpace | None
    embedding_dim: int | None
    model: ModelSpec | None
    text_model: ModelSpec | None
    preprocessing: Preprocessing | None
    folders: dict[str, tuple[str, ...]]


class EmbeddingIndex:
    """Vectors by key in one SQLite file that can be searched; use it with `async with`.

    A file holds the vectors of one space: that of its first vectors, or the one given here. All
    work on it is done in a worker thread. What a call has stored stays, even if the process is
    killed right after. Several processes may use one file; one writes at a time. A file that
    cannot be written can be searched.

    Args:
        path: Of the file, made where there is none, in a folder that exists. Where not given, the
            user's own, `default_index_path()`.
        space: The space its vectors live in, such as `model.space`. Needed to `add` vectors to a
            new file.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, space: EmbeddingSpace | None = None
    ) -> None:
        self._path = default_index_path() if path is None else Path(path)
        self._makes_folder = path is None
        self._wanted = space
        self._found: About | None = None
        self._database: Database | None = None
        self._one_at_a_time = anyio.CapacityLimiter(1)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._path

    @property
    def space(self) -> EmbeddingSpace | None:
        """The space of the vectors; None for a new file for which none was given."""
        return self._found.space if self._found else self._wanted

    @property
    def embedding_dim(self) -> int | None:
        """Values per vector; None before the first."""
        return self._found.dim if self._found else None

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            IndexFileError: It cannot be opened.
            IndexLocked: Another process holds its lock for longer than 5 s.
            IndexDamaged: It is damaged, or the file of something else.
            IncompatibleSpaces: Its vectors live in another space than the one given.
        """
        if self._database is not None:
            raise InvalidConfig("the index is in use by another `async with` already")
        opening = BlockingCall(self._open)
        try:
            self._database = await opening.run(self._one_at_a_time)
        except BaseException:
            if opening.result is not None:
                opening.result.close()
            raise
        try:
            await self._look_again()
            if self._wanted is not None:
                self._check_searchable(self._wanted)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._close()

    async def info(self) -> IndexInfo:
        """Return what is known of the index.

        Raises:
            IndexFileError: The file cannot be read.
        """
        return await self._run(self._info)

    async def use_text_model(self, model: TextEmbeddings) -> None:
        """Remember which text model finds the pictures.

        Args:
            model: Loaded if it is not.

        Raises:
            IncompatibleSpaces: Its vectors do not compare with the index's.
            IndexFileError: The file cannot be written.
        """
        await model.load()
        await self._look_again()
        self._check_searchable(model.space, model.spec.name)
        await self._run(partial(Database.remember, text_model=model.spec))

    async def use_preprocessing(self, model: ImageEmbeddings) -> None:
        """Remember the preprocessing that was given to the index's model, for later handles of it.

        Args:
            model: Made with `preprocessing=`; loaded if it is not.

        Raises:
            IncompatibleSpaces: Its vectors do not compare with the index's.
            IndexFileError: The file cannot be written.
        """
        await model.load()
        await self._adopt(About(space=model.space, dim=model.embedding_dim, model=model.spec))
        await self._run(partial(Database.remember, preprocessing=model.preprocessing))

    # --- vectors

    async def add(self, key: str, embedding: ArrayLike) -> None:
        """Store a vector, in place of the key's former one. On the disk when it returns.

        Args:
            key: Of the vector.
            embedding: `(dim,)`, not all zeros.

        Raises:
            WrongDimensions: Of another shape than the index's vectors.
            InvalidUserInput: The key is not a text, or the vector has zeros or no numbers only.
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
            InvalidUserInput: A key is not a text, or a vector has zeros or no numbers only.
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
        await self._adopt(About(space=self._wanted or self.space, dim=dims.pop()))
        await self._run(lambda database: database.put(vectors))

    async def remove(self, *keys: str) -> int:
        """Remove vectors, and return how many of the keys had one."""
        return await self._run(lambda database: database.remove(keys))

    async def contains(self, key: str) -> bool:
        """Return whether a key has a vector."""
        return await self._run(lambda database: database.contains(key))

    async def count(self) -> int:
        """Return how many vectors there are."""
        return await self._run(Database.count)

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""
        return await self._run(lambda database: database.keys(prefix))

    async def keys_below(self, folder: str | os.PathLike[str]) -> list[str]:
        """Return the keys of the pictures below a folder, sorted."""
        return await self.keys(prefix_below(await _real(folder)))

    async def get(self, key: str) -> Vector | None:
        """Return the float32 vector `(dim,)` of a key, None where it has none."""
        await self._look_again()
        if self._found is None:
            return None
        return await self._run(lambda database: database.vector(key))

    # --- searching

    async def search(
        self, embedding: ArrayLike, k: int = 10, *, min_similarity: float = -1.0
    ) -> list[Hit]:
        """Return the vectors nearest to one, by their cosine similarity.

        Up to 4,096 vectors are all compared. Of more, the 200 (or 10 x `k`) with the nearest
        sketches are; `docs/performance.md` has the recall.

        Args:
            embedding: `(dim,)`, of any length above 0.
            k: How many, at least 1.
            min_similarity: Leave out what is less similar, -1 to 1.

        Returns:
            At most `k` hits with their exact similarities, the nearest first.

        Raises:
            WrongDimensions: Of another shape than the index's vectors.
            InvalidConfig: `k` is below 1.
            IndexFileError: The file cannot be read.
        """
        if k < 1:
            raise InvalidConfig(f"k is at least 1, not {k}")
        await self._look_again()
        if self._found is None:
            return []
        vector = self._checked(embedding)
        return await self._run(lambda database: database.search(vector, k, min_similarity))

    async def search_item(
        self,
        item: InputT,
        model: EmbeddingHandle[InputT],
        k: int = 10,
        *,
        min_similarity: float = -1.0,
    ) -> list[Hit]:
        """Embed something, and return what is nearest to it.

        Args:
            item: What `model.forward` takes: a picture or, for a text model, words.
            model: Of the index's space.
            k: How many, at least 1.
            min_similarity: Leave out what is less similar, -1 to 1.

        Raises:
            IncompatibleSpaces: The model's vectors do not compare with the index's.
            AioembedError: As `model.forward` and `search`.
        """
        await model.load()
        await self._look_again()
        self._check_searchable(model.space, model.spec.name)
        return await self.search(await model.forward(item), k, min_similarity=min_similarity)

    async def duplicates(
        self, folder: str | os.PathLike[str] | None = None, *, above: float = 0.95
    ) -> list[list[Hit]]:
        """Return groups of vectors that are very similar; no pair is missed.

        Args:
            folder: Only pictures below it; None compares all vectors.
            above: The least cosine similarity, over 0 up to 1, that puts two into one group.

        Returns:
            Groups of at least two, the largest first. Within one, hits are sorted by their keys,
            with their similarity to the first.

        Raises:
            InvalidConfig: `above` is not over 0 and up to 1.
            IndexFileError: The file cannot be read.
        """
        if not 0 < above <= 1:
            raise InvalidConfig(f"the least similarity of duplicates is over 0, up to 1: {above}")
        below = "" if folder is None else prefix_below(await _real(folder))
        return await self._run(lambda database: database.duplicates(above, below))

    # --- following a folder

    async def sync(
        self,
        folder: str | os.PathLike[str],
        model: ImageEmbeddings,
        *,
        exclude: Sequence[str] | None = None,
        prune: bool = False,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Embed the pictures below a folder that are new or changed; remove those that are gone.

        A picture's key is its absolute path, links to the folder itself resolved. One whose time
        and size are those of before is not read, one whose content has a vector, here or elsewhere
        in the index, is not embedded: a folder that was renamed is not. A picture that fails is
        not an error: `errors` says why it has no vector. What is done is committed as it goes on,
        so that a sync that was cancelled or killed goes on where it was.

        Pictures that are gone are kept, and counted as `missing`, where a drive may not be
        mounted: if they are more than half of those below the folder, if their folder is there but
        has no pictures left, or if a link to them or to their folder leads nowhere.

        Args:
            folder: Its subfolders count, symbolic links to folders too.
            model: Of the index's space; loaded if it is not.
            exclude: Patterns of names (`*.gif`) or of paths below the folder (`2019/*`) to leave
                out, besides hidden files and the like. None takes those of the last time.
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
        about = About(space=model.space, dim=model.embedding_dim, model=model.spec)
        await self._adopt(about)
        root = await _real(folder)
        known = await self._run(Database.folders)
        left_out = known.get(root, []) if exclude is None else list(exclude)
        report = await FolderSync(
            root, model, self._run, exclude=left_out, prune=prune, on_progress=on_progress
        ).run()
        if known.get(root) != left_out:
            await self._run(partial(Database.remember_folder, path=root, exclude=left_out))
        return report

    async def forget(self, folder: str | os.PathLike[str]) -> int:
        """Remove everything below a folder from the index, whether the folder is there or not.

        Args:
            folder: As it was synced, or a folder in it. The files are left alone.

        Returns:
            How many vectors there were.

        Raises:
            IndexFileError: The file cannot be written.
        """
        return await self._run(partial(Database.forget, folder=await _real(folder)))

    async def stored_vector(self, picture: str | os.PathLike[str]) -> Vector | None:
        """Return the vector of a picture that is indexed and has not changed since.

        Args:
            picture: Its path, by whatever links it goes.

        Returns:
            float32 `(dim,)`; None where it is not indexed, or its content is another now.
        """

        def look(database: Database) -> Vector | None:
            for key in dict.fromkeys((os.path.realpath(picture), os.path.abspath(picture))):  # noqa: PTH100
                record = database.record(key)
                if record is not None and record.has_vector and is_unchanged(record):
                    return database.vector(key)
            return None

        return await self._run(look)

    async def errors(self, folder: str | os.PathLike[str]) -> dict[str, str]:
        """Return why pictures below a synced folder have no vector, by their paths."""
        root = await _real(folder)
        records = await self._run(lambda database: database.records(root))
        return {path: record.error for path, record in records.items() if record.error}

    # ---

    def _open(self) -> Database:
        if self._makes_folder:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise IndexFileError(
                    f"cannot make the folder of the index {shorten(self._path)}: "
                    f"{exc.strerror}: name a file elsewhere"
                ) from exc
        return Database(self._path)

    async def _run(self, function: Callable[[Database], R]) -> R:
        """Run a function of the database in a worker thread; once begun it is waited for."""
        if self._database is None:
            raise InvalidConfig(
                f"the index {shorten(self._path)} is not open: use it inside `async with`"
            )
        return await BlockingCall(partial(function, self._database)).run(self._one_at_a_time)

    async def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with anyio.CancelScope(shield=True):
                await BlockingCall(database.close).run(self._one_at_a_time)

    def _info(self, database: Database) -> IndexInfo:
        about = database.about()
        return IndexInfo(
            path=self._path,
            count=database.count(),
            size_bytes=database.size_bytes(),
            space=about.space if about else None,
            embedding_dim=about.dim if about else None,
            model=about.model if about else None,
            text_model=about.text_model if about else None,
            preprocessing=about.preprocessing if about else None,
            folders={path: tuple(exclude) for path, exclude in database.folders().items()},
        )

    async def _look_again(self) -> None:
        """Read what another process may have stored in a new file."""
        if self._found is None:
            self._found = await self._run(Database.about)

    async def _adopt(self, wanted: About) -> None:
        """Set the space of a new file; refuse vectors of another space than the file's."""
        await self._look_again()
        if self._found is None or (self._found.model is None and wanted.model is not None):
            self._found = await self._run(partial(Database.adopt, wanted=wanted))
        if self._found.space != wanted.space or self._found.dim != wanted.dim:
            raise self._of_another_space(wanted.space, wanted.model.name if wanted.model else None)

    def _check_searchable(self, space: EmbeddingSpace, name: str | None = None) -> None:
        if self._found is not None and not self._found.space.is_compatible(space):
            raise self._of_another_space(space, name)

    def _of_another_space(self, space: EmbeddingSpace, name: str | None) -> IncompatibleSpaces:
        assert self._found is not None  # noqa: S101  # callers have compared with it
        made_by = f" of {self._found.model.name}" if self._found.model else ""
        other = f"those of {name}" if name else "these"
        return IncompatibleSpaces(
            f"the index {shorten(self._path)} holds vectors{made_by} (space {self._found.space.id},"
            f" {self._found.dim} values), which do not compare with {other} (space {space.id}): "
            "use the model that it was made with, or index into another file"
        )

    def _checked(self, embedding: ArrayLike) -> Vector:
        vector = np.ascontiguousarray(embedding, dtype=np.float32)
        if vector.ndim != 1 or (self._found is not None and vector.size != self._found.dim):
            wanted = f"({self._found.dim},)" if self._found else "(dim,)"
            raise WrongDimensions(f"the index takes vectors {wanted}, not {vector.shape}")
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise InvalidUserInput("a vector of zeros, NaN or infinity has no direction")
        return vector


async def _real(folder: str | os.PathLike[str]) -> str:
    """Return the absolute path of a folder that may be missing, links resolved."""
    return await BlockingCall(lambda: os.path.realpath(folder)).run()


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not key or not is_utf8(key):
        raise InvalidUserInput(f"a key is a text that is not empty, not {shorten(repr(key))}")
    return key
