"""What an index returns, and what it keeps of each file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FileRecord", "Hit", "SyncReport"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search.

    Attributes:
        key: What was found.
        similarity: Cosine of the angle to what was searched for, -1 to 1.
    """

    key: str
    similarity: float


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was when it was last read.

    Attributes:
        path: Absolute; it is the key of the file's vector.
        mtime_ns: Time of its last change, in nanoseconds; -1 where that was too fresh to tell a
            later change from it.
        size: Bytes.
        sha256: Of the content that was embedded, or could not be; empty where none was read.
        error: Why it could not be embedded, empty where it was.
        retry: Whether it is tried again although it did not change; until then it keeps the vector
            that it had.
    """

    path: str
    mtime_ns: int
    size: int
    sha256: str = ""
    error: str = ""
    retry: bool = False

    @property
    def has_vector(self) -> bool:
        """Whether it has a vector, of the content with this hash."""
        return bool(self.sha256) and (self.retry or not self.error)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """How far `EmbeddingIndex.sync` is, or what it did.

    Attributes:
        scanned: Files that were looked at.
        ignored: Those among them whose names are not those of pictures.
        total: Pictures that were found; grows until the folder was walked.
        unchanged: Pictures whose vectors are those of before.
        embedded: Pictures that were embedded now.
        failed: Pictures without a vector; `EmbeddingIndex.errors` says why.
        removed: Files that are gone, and their vectors with them.
        missing: Files that are not there, but so many of them, or in such a way, that a drive may
            not be mounted: their vectors are kept. `prune=True` removes them.
        is_scanning: Whether the folder is being walked still.
    """

    scanned: int = 0
    ignored: int = 0
    total: int = 0
    unchanged: int = 0
    embedded: int = 0
    failed: int = 0
    removed: int = 0
    missing: int = 0
    is_scanning: bool = True

    @property
    def done(self) -> int:
        """Pictures that are dealt with, of `total`."""
        return self.unchanged + self.embedded + self.failed
