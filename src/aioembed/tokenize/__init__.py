"""Text to token ids, by a `tokenizer.json`. It knows nothing of models."""

from .tokenizer import MAX_CHARACTERS as MAX_CHARACTERS
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import Tokens as Tokens
from .truncation import Truncate as Truncate
from .truncation import TruncationWarning as TruncationWarning
from .truncation import report_truncation as report_truncation
