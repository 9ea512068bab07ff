"""How a release's default becomes the configuration of a private containerd; the releases are made up."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.testing.configuration import CHANGES, ConfigurationError, configure, socket_paths, with_opt, write
from shim.testing.releases import SUITES, Release

OLD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
imports = []
[grpc]
address = "/run/containerd/containerd.sock"
gid = 0
[plugins."io.containerd.internal.v1.opt"]
path = "/opt/containerd"
"""
# As containerd 2.3 prints it: the sections of grpc and ttrpc have become plugins.
NEW = """
version = 4
root = '/var/lib/containerd'
state = '/run/containerd'
imports = ['/etc/containerd/conf.d/*.toml']
[plugins.'io.containerd.server.v1.grpc']
address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
address = '/run/containerd/containerd.sock.ttrpc'
[plugins.'io.containerd.nri.v1.nri']
socket_path = '/var/run/nri/nri.sock'
"""

Releases = Callable[..., Release]

KEYS = st.text(min_size=1, max_size=8)
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@pytest.fixture
def release(tmp_path: Path) -> Releases:
    """Return a maker of releases that print a text, or fail with a status."""

    def make(text: str, version: str = "1.6.20", status: int = 0) -> Release:
        (tmp_path / "default").write_text(text)
        program = tmp_path / "containerd"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = "config default" ] || exit 9\n'
            f"cat {tmp_path}/default\necho 'it says' no >&2\nexit {status}\n"
        )
        program.chmod(0o755)
        return Release(version, tmp_path, "built")

    return make


def test_folders_and_sockets_are_its_own_and_all_else_is_as_printed(release: Releases) -> None:
    """Those that the default leaves to containerd follow from them."""
    written = tomllib.loads(configure(release(OLD), Path("/f")))

    assert "/f/c.sock" == written["grpc"].pop("address")
    assert ("/f/root", "/f/state") == (written.pop("root"), written.pop("state"))
    rest = tomllib.loads(OLD)
    del rest["root"], rest["state"], rest["grpc"]["address"]
    assert rest == written


def test_later_releases_have_their_sockets_elsewhere_and_import_nothing_of_the_host(release: Releases) -> None:
    """By what they print, since one of one's own building does not know its version."""
    written = tomllib.loads(configure(release(NEW, "9999.0.0"), Path("/f")))
    plugins = written["plugins"]
    addresses = {plugins[f"io.containerd.server.v1.{name}"]["address"] for name in ("grpc", "ttrpc")}

    assert [] == written["imports"]
    assert {*addresses, plugins["io.containerd.nri.v1.nri"]["socket_path"]} == socket_paths("/f/c.sock")


@pytest.mark.parametrize(
    "value", ["'/run/containerd/new.sock'", "['/var/lib/containerd']", "[{p = '/run/containerd/x'}]"]
)
def test_what_belongs_to_the_hosts_containerd_is_refused(value: str, release: Releases) -> None:
    """A release may have such a key that no row knows."""
    with pytest.raises(ConfigurationError, match=r"containerd 3\.0\.0 would use /"):
        configure(release(f"[plugins.new]\nplace = {value}\n", "3.0.0"), Path("/f"))


def test_a_release_that_does_not_print_its_default_is_named(release: Releases) -> None:
    """With what it says."""
    with pytest.raises(ConfigurationError, match="containerd config default ended with 3: it says no"):
        configure(release("", status=3), Path("/f"))


def test_settings_of_a_test_are_laid_over_the_default(release: Releases) -> None:
    """Key by key: what they do not name stays."""
    settings = "[grpc]\ngid = 7\n[plugins.'io.containerd.internal.v1.opt'.more]\nanswer = 42\n"
    written = tomllib.loads(configure(release(OLD), Path("/f"), settings))

    assert {"address": "/f/c.sock", "gid": 7} == written["grpc"]
    assert {"path": "/opt/containerd", "more": {"answer": 42}} == written["plugins"]["io.containerd.internal.v1.opt"]


def test_rows_give_a_reason_and_are_for_a_release_that_is_tested_or_is_to_come() -> None:
    """One that is only for releases older than all of these has to go."""
    oldest = min(tuple(map(int, f"{key}.0".split(".")[:2])) for key in SUITES.values())

    assert [] == [row.keys for row in CHANGES if not row.reason or row.until <= max(oldest, row.since)]
    assert len({row.keys for row in CHANGES}) == len(CHANGES)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_table_is_read_as_it_was_written(table: dict[str, object]) -> None:
    """Whatever its keys and texts are."""
    assert table == tomllib.loads(write(table))


def test_opt_comes_first_and_an_unset_library_path_stays_empty() -> None:
    """So that the list ends with a colon, as containerd writes it."""
    assert {"PATH": "/opt/containerd/bin:/bin", "LD_LIBRARY_PATH": "/opt/containerd/lib:"} == with_opt({"PATH": "/bin"})
    assert "/opt/containerd/lib:/own" == with_opt({"PATH": "", "LD_LIBRARY_PATH": "/own"})["LD_LIBRARY_PATH"]
