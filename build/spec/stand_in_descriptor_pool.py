"""Takes the place of protobuf's module of that name: the pool of its C extension, which holds all messages of a shim.

The real one has another in Python, of which nothing is used beside that.
"""

from google._upb._message import DescriptorPool, default_pool

__all__ = ["Default", "DescriptorPool"]


def Default():
    """Return the pool of all generated code."""
    return default_pool
