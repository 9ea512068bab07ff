"""Go's shim and ours with a log driver of ours, by the URI that `ctr run` takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from shim.testing.containerd import GO_RUNTIME, RUNTIME, Containerd
from shim.testing.releases import Release
from tests.fakes import ROOT
from tests.integration.client import wait_until

SCRIPT: Final = "echo one; echo two >&2; sleep 0.1; printf three"


def write_driver(folder: Path) -> Path:
    """Write an executable that is examples/log_driver.py, and needs nothing of its environment."""
    path = folder / "log_driver"
    path.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'examples/log_driver.py')!r}, run_name='__main__')\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("runtime", "scheme"), [(GO_RUNTIME, "binary"), (RUNTIME, "binary"), (RUNTIME, "binary-v2")], ids=str
)
def test_a_shim_gives_all_output_to_our_driver(
    release: Release, shim_folder: Path, tmp_path: Path, runtime: str, scheme: str
) -> None:
    """Go's and ours: both streams are in the file that the URI names, each line with the container's id."""
    log = tmp_path / "hello.log"
    with Containerd(release, [shim_folder], runtime=runtime) as containerd:
        containerd.import_image()
        uri = f"{scheme}://{write_driver(tmp_path)}?file={log}"
        containerd.run("hello", "sh", "-c", SCRIPT, detach=True, options=["--log-uri", uri])
        containerd.wait_status("hello", "STOPPED", timeout_s=60)
        containerd.ctr("tasks", "rm", "hello")
        wait_until(lambda: log.read_bytes().endswith(b"three"), "the driver has written all")
        containerd.ctr("containers", "rm", "hello")

    lines = log.read_bytes().split(b"\n")
    assert sorted([b"hello stdout: one", b"hello stdout: three", b"hello stderr: two"]) == sorted(lines)
    assert [] == containerd.left_behind
