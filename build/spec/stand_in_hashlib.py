"""Takes the place of `hashlib` in the shims' own binaries: the one hash that names sockets.

The real one loads all hashes that Python has, each from a library of its own.
"""

try:
    from _sha2 import sha256
except ImportError:  # before Python 3.12
    from _sha256 import sha256

__all__ = ["sha256"]
