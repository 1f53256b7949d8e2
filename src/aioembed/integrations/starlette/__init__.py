"""Routes for Starlette and FastAPI applications, and a server of its own."""

try:
    import prometheus_client as _prometheus_client  # noqa: F401
    import python_multipart as _python_multipart  # noqa: F401
    import sse_starlette as _sse_starlette  # noqa: F401
    import starlette as _starlette  # noqa: F401
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "starlette", "server") from _exc

from .drain import Drain as Drain
from .limits import ServerLimits as ServerLimits
from .models import Handle as Handle
from .models import ModelsArgument as ModelsArgument
from .routing import lifespan as lifespan
from .routing import router as router
