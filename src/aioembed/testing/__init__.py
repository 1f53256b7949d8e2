"""Servers on loopback for tests of programs that use aioembed."""

from .hub import HubServer
from .loopback import LoopbackServer, Reply, Request, file_reply

__all__ = ["HubServer", "LoopbackServer", "Reply", "Request", "file_reply"]
