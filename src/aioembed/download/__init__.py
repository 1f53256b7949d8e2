"""Model files: fetched once, verified, kept in a cache."""

from .cache import Cache, CachedFile, Pruned, Resource
from .fetcher import DownloadControl, Fetcher
from .http import FetchLimits, Timing
from .progress import Progress, ProgressMeter, RateMeter

__all__ = [
    "Cache",
    "CachedFile",
    "DownloadControl",
    "FetchLimits",
    "Fetcher",
    "Progress",
    "ProgressMeter",
    "Pruned",
    "RateMeter",
    "Resource",
    "Timing",
]
