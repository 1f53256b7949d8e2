"""Vectors in a file that can be searched, and folders of pictures that such a file follows."""

from .database import Hit as Hit
from .folder import ALWAYS_EXCLUDED as ALWAYS_EXCLUDED
from .folder import SyncReport as SyncReport
from .index import EmbeddingIndex as EmbeddingIndex
from .index import IndexInfo as IndexInfo
from .index import default_index_path as default_index_path
