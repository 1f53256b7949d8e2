"""The lifecycle that image and text handles share."""

from .._signature import ModelContract as ModelContract
from .base import EmbeddingHandle as EmbeddingHandle
from .calls import OnBusy as OnBusy
from .calls import OnCall as OnCall
from .loaded import Inputs as Inputs
from .loaded import LoadedModel as LoadedModel
from .loader import DEFAULT_NICENESS as DEFAULT_NICENESS
from .loader import LoadOptions as LoadOptions
from .stream import EmbeddingStream as EmbeddingStream
from .stream import Err as Err
from .stream import Ok as Ok
