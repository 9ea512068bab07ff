"""A private containerd is configured as its release does by default, but for the rows of a table."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from shim.testing.configuration import CHANGES, OPT_FOLDER
from shim.testing.containerd import Containerd
from shim.testing.releases import Release

OPT = "io.containerd.internal.v1.opt"


def default_of(release: Release) -> dict[str, object]:
    """Return what the release prints."""
    command = [str(release.containerd), "config", "default"]
    return tomllib.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def leaves(value: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Return all values of a table by their keys, and the tables that are empty."""
    if not isinstance(value, dict) or not value:
        yield keys, value
        return
    for key, inner in value.items():
        yield from leaves(inner, (*keys, key))


def test_nothing_but_the_rows_of_the_table_differs_from_the_default(release: Release, containerd: Containerd) -> None:
    """Each row that is for this release differs, and no other key is changed, added or left out."""
    default = dict(leaves(default_of(release)))
    written = dict(leaves(tomllib.loads((containerd.folder / "config.toml").read_text())))
    changed = {keys: value for keys, value in written.items() if keys not in default or default[keys] != value}

    assert {row.keys: row.value_in(containerd.folder) for row in CHANGES if row.applies_to(release)} == changed
    assert default.keys() == written.keys()


def test_plugins_that_every_node_has_on_are_on(release: Release, containerd: Containerd) -> None:
    """They have been loaded without an error; the one that sets shims' environment has its folder by default."""
    lines = containerd.ctr("plugins", "ls").stdout.splitlines()[1:]
    states = {f"{words[0]}.{words[1]}": words[-1] for words in map(str.split, lines) if words}
    modern = release.major >= 2
    expected = {
        OPT,
        "io.containerd.grpc.v1.cri",
        "io.containerd.monitor.container.v1.restart" if modern else "io.containerd.internal.v1.restart",
        "io.containerd.monitor.task.v1.cgroups" if modern else "io.containerd.monitor.v1.cgroups",
        *(("io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri") if modern else ()),
    }

    assert dict.fromkeys(expected, "ok") == {name: states.get(name) for name in expected}
    assert OPT_FOLDER == dict(leaves(default_of(release)))["plugins", OPT, "path"]
    assert Path(OPT_FOLDER, "lib").is_dir()
