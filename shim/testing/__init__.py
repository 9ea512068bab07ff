"""What a shim's author needs to test it: a fake containerd and a fake runc; and real counterparts for our own tests.

`FakeContainerd` runs a shim as a version of containerd does, `FakeRunc` stands for the OCI runtime; docs/testing.md.
`containerd.Containerd` is a private real containerd, `image` makes an image without a network, `releases` finds
containerd releases, `leftovers` says what was left behind.  Names are re-exported on first use (PEP 562), since the
fake runc is started often.  Nothing here is on a daemon's path.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.testing.bundle import Bundle
    from shim.testing.conditions import wait_until
    from shim.testing.event_service import Event, EventService, Gate
    from shim.testing.fake_containerd import FakeContainerd
    from shim.testing.fake_runc import FakeRunc, RuncCall, RuncGate
    from shim.testing.running_shim import RunningShim
    from shim.testing.versions import (
        VERSIONS,
        DeleteError,
        Endpoint,
        ReconnectError,
        StartError,
        UnspokenError,
        VerdictError,
        Version,
    )

__all__ = [
    "VERSIONS",
    "Bundle",
    "DeleteError",
    "Endpoint",
    "Event",
    "EventService",
    "FakeContainerd",
    "FakeRunc",
    "Gate",
    "ReconnectError",
    "RuncCall",
    "RuncGate",
    "RunningShim",
    "StartError",
    "UnspokenError",
    "VerdictError",
    "Version",
    "wait_until",
]

_HOMES = {
    "VERSIONS": "versions",
    "Bundle": "bundle",
    "DeleteError": "versions",
    "Endpoint": "versions",
    "Event": "event_service",
    "EventService": "event_service",
    "FakeContainerd": "fake_containerd",
    "FakeRunc": "fake_runc",
    "Gate": "event_service",
    "ReconnectError": "versions",
    "RuncCall": "fake_runc",
    "RuncGate": "fake_runc",
    "RunningShim": "running_shim",
    "StartError": "versions",
    "UnspokenError": "versions",
    "VerdictError": "versions",
    "Version": "versions",
    "wait_until": "conditions",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
