"""Model files: fetched once, verified, kept in a cache."""

from .cache import Cache, Pruned
from .control import DownloadControl
from .fetcher import Fetcher
from .hub import is_offline
from .leases import Lease
from .limits import FetchLimits, Timing
from .progress import Progress, ProgressMeter, RateMeter
from .resource import CachedFile, Resource
from .store import Verify

__all__ = [
    "Cache",
    "CachedFile",
    "DownloadControl",
    "FetchLimits",
    "Fetcher",
    "Lease",
    "Progress",
    "ProgressMeter",
    "Pruned",
    "RateMeter",
    "Resource",
    "Timing",
    "Verify",
    "is_offline",
]
