"""The address file that containerd 1.6 and 1.7 find a shim again by."""

import os
import stat
import threading
from pathlib import Path

import pytest

from shim.runtime.legacy import write_address_file


def test_the_file_holds_the_address_and_nothing_else(tmp_path: Path) -> None:
    """No newline; readable for everybody whatever the umask."""
    before = os.umask(0o077)
    try:
        write_address_file(str(tmp_path), "unix:///run/s/x")
    finally:
        os.umask(before)

    assert b"unix:///run/s/x" == (tmp_path / "address").read_bytes()
    assert 0o644 == stat.S_IMODE((tmp_path / "address").stat().st_mode)
    assert ["address"] == os.listdir(tmp_path)


def test_the_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A reader sees the old text or the new one, never a part."""
    texts = {f"unix:///{letter * 50}" for letter in "ab"}
    write_address_file(str(tmp_path), min(texts))
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add((tmp_path / "address").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        for text in sorted(texts):
            write_address_file(str(tmp_path), text)
    stop.set()
    reader.join()

    assert seen <= texts
    assert max(texts) == (tmp_path / "address").read_text()


def test_a_failure_leaves_no_other_file(tmp_path: Path) -> None:
    """A folder in its place, or none to write to."""
    (tmp_path / "address").mkdir()
    with pytest.raises(IsADirectoryError):
        write_address_file(str(tmp_path), "x")
    with pytest.raises(FileNotFoundError):
        write_address_file(str(tmp_path / "missing"), "x")

    assert ["address"] == os.listdir(tmp_path)
