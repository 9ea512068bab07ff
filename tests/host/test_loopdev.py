"""Loop devices: what fails before there is one. tests/integration/test_host_mounts.py mounts a real one."""

import os
from pathlib import Path

import pytest

from shim.host import loopdev


def test_attach_names_the_missing_file(tmp_path: Path) -> None:
    """The error is that of the backing file, and no descriptor stays open."""
    missing = tmp_path / "missing.img"
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(FileNotFoundError) as caught:
        loopdev.attach(str(missing), read_only=True, direct_io=False)

    assert str(missing) == caught.value.filename
    assert before == len(os.listdir("/proc/self/fd"))
