"""Which certificates of other hosts are trusted, as the environment's settings say."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import httpx

from .errors import InvalidConfig

__all__ = ["invalid_settings_refused", "read_certificates"]


def read_certificates() -> ssl.SSLContext:
    """Return what is trusted. Blocks.

    Raises:
        InvalidConfig: SSL_CERT_FILE or SSL_CERT_DIR cannot be used.
    """
    with invalid_settings_refused():
        return _trusting(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@contextmanager
def invalid_settings_refused() -> Iterator[None]:
    """Raise `InvalidConfig` where the environment's settings for connections are no good."""
    try:
        yield
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as exc:
        raise InvalidConfig(
            f"the proxy or certificate settings of the environment cannot be used: {exc}; see "
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from exc


@cache
def _trusting(file: str | None, folder: str | None) -> ssl.SSLContext:  # noqa: ARG001
    """One context for each setting: making one takes 0.05 s."""
    return httpx.create_ssl_context()
