"""Python's `logging` in the shim's log."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.errors import InvalidArgumentError
from shim.runtime.config import LOG_LEVELS, Config
from shim.runtime.log_handler import set_up_logging
from shim.runtime.logger import Logger


class Log:
    """A log, and the root logger that writes into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._loggers: list[Logger] = []

    def set_up(self, level: str = "info", *, is_debug: bool = False) -> logging.Logger:
        """Let the root logger write here, as a daemon does."""
        logger = Logger.open(str(self.path), is_debug=is_debug, level=level, runtime="r")
        self._loggers.append(logger)
        set_up_logging(logger)
        return logging.getLogger()

    def lines(self) -> list[str]:
        """Return what has been logged, without the times."""
        return [line.partition('Z" ')[2] for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        """Give back the descriptors."""
        for logger in self._loggers:
            os.close(logger.fd)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log; the root logger is pytest's again in the end."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log = Log(tmp_path / "log")
    yield log
    root.handlers[:] = handlers
    root.setLevel(level)
    log.close()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (logging.DEBUG, "debug"),
        (15, "debug"),
        (logging.INFO, "info"),
        (25, "info"),
        (logging.WARNING, "warning"),
        (35, "warning"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "error"),
        (99, "error"),
    ],
)
def test_each_level_is_the_next_one_below_that_containerd_knows(log: Log, number: int, expected: str) -> None:
    """Custom ones too."""
    log.set_up(is_debug=True).log(number, "hello there")

    assert [f'level={expected} msg="hello there" runtime=r'] == log.lines()


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", "dpiwe"), ("info", "iwe"), ("warning", "we"), ("error", "e"), ("-debug", "dpiwe")]
)
def test_the_shims_level_is_the_root_loggers(log: Log, level: str, shown: str) -> None:
    """Below it nothing is even made; `-debug` shows all that logging itself has a name for."""
    root = log.set_up("info", is_debug=True) if level == "-debug" else log.set_up(level)
    for number, name in ((5, "t"), (10, "d"), (15, "p"), (20, "i"), (30, "w"), (40, "e")):
        root.log(number, name)

    assert [*shown] == [line.split()[1].removeprefix("msg=") for line in log.lines()]


def test_a_record_has_its_arguments_its_fields_and_its_loggers_name(log: Log) -> None:
    """The root logger has none; a field of no value is left out."""
    log.set_up()
    logging.getLogger("a.b").info("%s of %d", "one", 2, extra={"container": "c 1", "pid": 7, "nothing": None})
    logging.getLogger().info("plain")

    assert [
        'level=info msg="one of 2" container="c 1" pid=7 logger=a.b runtime=r',
        "level=info msg=plain runtime=r",
    ] == (log.lines())


@pytest.mark.parametrize("name", ["self", "level", "fields", "error"])
def test_a_field_may_have_any_name(log: Log, name: str) -> None:
    """Those of the logger's own parameters as well."""
    log.set_up().info("hello", extra={name: 1})

    assert [f"level=info msg=hello {name}=1 runtime=r"] == log.lines()


def test_an_exception_comes_with_its_record(log: Log) -> None:
    """At the record's own level, with its fields, and where the exception came through; all in one line."""
    root = log.set_up()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").warning("trying again", exc_info=True, extra={"container": "c"})
        root.exception("given up")
    lines = log.lines()

    error = r'error="ValueError: two\nlines" trace="test_log_handler.py:'
    assert lines[0].startswith(f'level=warning msg="trying again" container=c logger=x {error}')
    assert lines[1].startswith(f'level=error msg="given up" {error}')
    assert 2 == len(lines)


def test_an_exception_that_is_none_is_none(log: Log) -> None:
    """`logging.exception` outside of an `except`."""
    log.set_up().exception("what?")

    assert ["level=error msg=what? runtime=r"] == [line.replace('"', "") for line in log.lines()]


def test_a_record_that_cannot_be_formatted_ends_nothing(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    """logging tells on stderr, which is the log in a daemon, where it was made."""
    root = log.set_up()
    root.info("%d", "no number")
    root.info("next")

    assert ["level=info msg=next runtime=r"] == log.lines()
    told = capfd.readouterr().err
    assert "TypeError: %d format" in told
    assert 'root.info("%d", "no number")' in told


def test_nobody_else_gets_the_shims_records(log: Log) -> None:
    """A second set-up, too, leaves one handler: nothing is told twice."""
    others: list[logging.LogRecord] = []

    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            others.append(record)

    logging.getLogger().addHandler(Other())
    log.set_up()
    root = log.set_up()
    root.info("once")

    assert ["level=info msg=once runtime=r"] == log.lines()
    assert [] == others


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_the_levels_of_config_are_the_loggers(level: str) -> None:
    """Each is accepted by both, and the logger tells it again."""
    Config(default_log_level=level).check()
    logger = Logger(level=level)

    assert (level, level == "debug") == (logger.level, logger.is_debug)
    assert "debug" == Logger(level=level, is_debug=True).level


@pytest.mark.parametrize("level", ["warn", "INFO", "", "trace"])
def test_another_level_is_refused(level: str) -> None:
    """By a text that names those that there are."""
    with pytest.raises(InvalidArgumentError, match=f"debug, info, warning, error, is '{level}'"):
        Config(default_log_level=level).check()


def test_the_logger_writes_from_its_level_on(tmp_path: Path) -> None:
    """Faults are errors."""
    written = {}
    for level in LOG_LEVELS:
        path = tmp_path / level
        path.touch()
        logger = Logger.open(str(path), is_debug=False, level=level)
        for each in LOG_LEVELS:
            getattr(logger, each)(each)
        logger.fault("fault", ValueError())
        with contextlib.closing(os.fdopen(logger.fd)):
            written[level] = [line.split()[2].removeprefix("msg=") for line in path.read_text().splitlines()]

    assert {level: [*LOG_LEVELS[at:], "fault"] for at, level in enumerate(LOG_LEVELS)} == written
