"""What dies with containerd 2.2: the `address` file in the bundle.

containerd 1.6 and 1.7 find a running shim again by this file when they restart; 2.x migrates it to bootstrap.json.
Delete this module when 1.7 is no longer supported, but for `read_address`, which reads either.
"""

from __future__ import annotations

import os


def write_address_file(folder: str, address: str) -> None:
    """Write `address` in a bundle, atomically, mode 0644."""
    temporary = os.path.join(folder, f".address.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(os.fsencode(address))
        os.rename(temporary, os.path.join(folder, "address"))
    except OSError:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise


def read_address(folder: str) -> str:
    """Return the address of the daemon of a bundle: ours in `address`, or containerd 2.x's bootstrap.json; or ''."""
    try:
        with open(os.path.join(folder, "address"), "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        pass
    try:
        with open(os.path.join(folder, "bootstrap.json"), "rb") as file:
            text = file.read()
    except OSError:
        return ""
    import json

    try:
        found = json.loads(text)
    except ValueError:
        return ""
    return str(found.get("address") or "") if isinstance(found, dict) else ""
