"""Routes for FastAPI and any other ASGI application; `aioembed serve` is made of them."""

try:
    import fastapi as _fastapi  # noqa: F401
    import prometheus_client as _prometheus_client  # noqa: F401
    import python_multipart as _python_multipart  # noqa: F401
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "fastapi", "server") from _exc

from .limits import ServerLimits as ServerLimits
from .metrics import Metrics as Metrics
from .models import Handle as Handle
from .models import Models as Models
from .models import ModelsArgument as ModelsArgument
from .router import app as app
from .router import get_models as get_models
from .router import lifespan as lifespan
from .router import router as router
from .router import stop as stop
