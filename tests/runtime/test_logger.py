"""The log: logrus' text format, and a pipe that may be full or forgotten."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.runtime.logger import Logger, format_time, format_value

RECORD = re.compile(r'^time="(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z)" level=(\w+) msg=(.*)$', re.DOTALL)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A bundle's log as containerd makes it, and containerd's end of it."""
    path = tmp_path / "log"
    os.mkfifo(path, 0o700)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield path, fd
    os.close(fd)


def lines_of(fd: int) -> list[str]:
    """Return what containerd would copy, without the times."""
    try:
        text = os.read(fd, 1 << 20).decode()
    except BlockingIOError:
        return []
    return [re.sub(r'^time="[^"]*" ', "", line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("a-b._/@^+Z9", "a-b._/@^+Z9"),
        (42, "42"),
        (True, "True"),
        ("", '""'),
        ("two words", '"two words"'),
        ("k=v", '"k=v"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a\nb\rc\td", '"a\\nb\\rc\\td"'),
        ("\x00\x1b\x7f", '"\\x00\\x1b\\x7f"'),
        ("grüße", '"grüße"'),
        ("\u2028", '"\\u2028"'),
        ("\udcff", '"\\udcff"'),
        ("\U000e0001", '"\\U000e0001"'),
        (OSError(2, "gone", "/x"), "\"[Errno 2] gone: '/x'\""),
    ],
)
def test_format_value_quotes_what_logrus_quotes(value: object, expected: str) -> None:
    """Everything but a few plain characters."""
    assert expected == format_value(value)


@given(st.text())
def test_a_value_is_always_one_line_of_text(text: str) -> None:
    """Whatever a peer puts into a name, it cannot forge a record."""
    shown = format_value(text)

    assert 1 == len(shown.splitlines())
    assert shown.encode("utf-8")
    assert re.fullmatch(r'[A-Za-z0-9._/@^+-]+|"([^"\\]|\\.)*"', shown)


def test_format_time_has_nine_digits_and_is_utc() -> None:
    """As Go writes it."""
    assert "1970-01-01T00:00:00.000000001Z" == format_time(1)
    assert "2024-05-06T07:08:09.123456789Z" == format_time(1714979289_123456789)


def test_records_look_like_gos(fifo: tuple[Path, int]) -> None:
    """Time, level, message, the record's own fields, then the logger's."""
    log = Logger.open(str(fifo[0]), is_debug=True, runtime="io.containerd.x.v1")
    log.debug("a message", pid=7)
    log.info("started")
    log.warning("odd", path="/a b", missing=None)
    log.error("failed", error=ValueError("why"))
    text = os.read(fifo[1], 65536).decode()
    os.close(log.fd)

    assert [
        ("debug", '"a message" pid=7 runtime=io.containerd.x.v1'),
        ("info", "started runtime=io.containerd.x.v1"),
        ("warning", 'odd path="/a b" runtime=io.containerd.x.v1'),
        ("error", "failed error=why runtime=io.containerd.x.v1"),
    ] == [match.group(2, 3) for line in text.splitlines() if (match := RECORD.match(line))]
    assert text.endswith("\n")


def test_debug_records_are_for_debugging(fifo: tuple[Path, int]) -> None:
    """They need the flag."""
    log = Logger.open(str(fifo[0]), is_debug=False)
    log.debug("hidden")
    log.info("shown")
    lines = lines_of(fifo[1])
    os.close(log.fd)

    assert ["level=info msg=shown"] == lines


def test_a_fault_tells_where_it_came_from(fifo: tuple[Path, int]) -> None:
    """In one line."""

    def fail() -> None:
        raise KeyError("why")

    log = Logger.open(str(fifo[0]), is_debug=False)
    try:
        fail()
    except KeyError as error:
        log.fault("error in x", error)
    (line,) = lines_of(fifo[1])
    os.close(log.fd)

    assert line.startswith('level=error msg="error in x" error="KeyError: \'why\'" trace="test_logger.py:')
    assert re.search(r" > test_logger\.py:\d+ fail\"$", line)


def test_a_full_pipe_drops_records_and_blocks_nobody(fifo: tuple[Path, int]) -> None:
    """Once it is read there is room again."""
    log = Logger.open(str(fifo[0]), is_debug=False)
    start = time.monotonic()
    for number in range(3000):
        log.info("x" * 60, number=number)
    took = time.monotonic() - start
    kept = lines_of(fifo[1])
    log.info("again")
    last = lines_of(fifo[1])
    os.close(log.fd)

    assert took < 5
    assert [f"level=info msg={'x' * 60} number={number}" for number in range(len(kept))] == kept
    assert 100 < len(kept) < 3000
    assert ["level=info msg=again"] == last


def test_what_is_written_while_containerd_restarts_is_kept(tmp_path: Path) -> None:
    """Nobody reads for a while, then somebody does."""
    path = tmp_path / "log"
    os.mkfifo(path)
    before = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    log = Logger.open(str(path), is_debug=False)
    os.close(before)
    log.info("between")
    after = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    lines = lines_of(after)
    os.close(after)
    os.close(log.fd)

    assert ["level=info msg=between"] == lines


def test_a_reader_that_is_gone_for_good_is_no_error() -> None:
    """EPIPE on a pipe that only had containerd's end."""
    read_end, write_end = os.pipe()
    log = Logger(write_end)
    os.close(read_end)
    log.info("x")
    os.close(write_end)
    log.info("closed meanwhile")


def test_a_plain_file_is_appended_to(tmp_path: Path) -> None:
    """Starts by hand have one."""
    path = tmp_path / "log"
    path.write_text("before\n")
    log = Logger.open(str(path), is_debug=False)
    log.info("after")
    log.raw("raw \udcff\n")
    os.close(log.fd)
    before, record, raw = path.read_text().splitlines()

    assert ("before", "raw \\udcff") == (before, raw)
    assert RECORD.match(record)


def test_without_a_log_records_vanish(tmp_path: Path) -> None:
    """A bundle may have none."""
    log = Logger.open(str(tmp_path / "missing"), is_debug=True)
    log.info("x")
    log.raw("x")

    assert -1 == log.fd
    assert [] == os.listdir(tmp_path)


def test_a_log_moves_by_the_same_descriptor(tmp_path: Path) -> None:
    """As the first bundle of a group goes; whoever else writes to the descriptor comes along."""
    for name in ("first", "second"):
        (tmp_path / name).touch()
    logger = Logger.open(str(tmp_path / "first"), is_debug=False)
    fd = logger.fd
    logger.info("one")

    assert logger.move(str(tmp_path / "second"))
    logger.info("two")
    assert not logger.move(str(tmp_path / "none"))
    logger.info("three")
    os.close(logger.fd)
    assert fd == logger.fd
    words = [re.findall("msg=([a-z]+)", (tmp_path / name).read_text()) for name in ("first", "second")]
    assert [["one"], ["two", "three"]] == words


def test_a_log_that_there_was_none_of_can_come(tmp_path: Path) -> None:
    """A daemon by hand may have had none."""
    logger = Logger.open(str(tmp_path / "none"), is_debug=False)
    (tmp_path / "log").touch()

    assert logger.move(str(tmp_path / "log"))
    assert not os.get_inheritable(logger.fd)
    logger.info("here")
    os.close(logger.fd)
    assert "msg=here" in (tmp_path / "log").read_text()
