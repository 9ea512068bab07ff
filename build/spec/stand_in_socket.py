"""Takes the place of `socket` in the shims' own binaries: the C class, and what Python adds to it and a shim uses.

The real one makes enums of hundreds of constants and brings `selectors`.
"""

from _socket import *  # noqa: F403  (the constants)
from _socket import socket as _CSocket


class socket(_CSocket):
    """A socket that accepts connections as one of its own kind and can be the subject of `with`."""

    __slots__ = ("__weakref__",)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def accept(self):
        """Return the new connection, which blocks, and the address of its peer."""
        fd, address = self._accept()
        return socket(self.family, self.type, self.proto, fileno=fd), address
