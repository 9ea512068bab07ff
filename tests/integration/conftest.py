"""Tests under real containerds, chosen by `--containerd=1.6|1.7|2.1|all|1.6,2.1` and `--shim=image,unfrozen,onefile`.

Each release with each kind of shim is one private containerd, started once and shared by all tests. A test names its
containers with `name` and leaves no task; at the end of each containerd nothing at all may be left. What is missing on
the machine (root, containerd, runc, busybox, a binary) fails the tests that need it, none is skipped.
Unless --shim is given, all tests run with the image and the unfrozen shim, and with the onefile those that are marked
`every_form`, since their result can depend on it: how a shim starts, becomes a daemon, and what its children get. Those
under a containerd do so with the first release alone.
Tests that harm their containerd make one of their own, from `release` and `shim_folder`.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from shim.testing import image, releases
from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.releases import Release, ReleaseError
from tests.integration.client import Fifo, Guests, TaskClient, shim_address, wait_until

__all__ = ["KINDS", "Flavour", "TaskClient", "shim_address", "wait_until"]

PROJECT: Final = Path(__file__).parents[2]
SHIM: Final = "containerd-shim-pyrunc-v1"
# The forms of the binary; build/spec/build.py says what they are.
BINARIES: Final = {
    "image": PROJECT / "dist" / SHIM,
    "static": PROJECT / "dist/static" / SHIM,
    "onefile": PROJECT / "dist/onefile" / SHIM,
}
# Generous, for a busy machine of two cores; the first test on a containerd pays for its start too.
TIMEOUT_S: Final = 120
# The last for marked tests alone.
KINDS: Final = ("image", "unfrozen", "onefile")


# What to run against.


@dataclass(frozen=True)
class Flavour:
    """One kind of shim under one release of containerd; `release` is the complaint if there is no such release."""

    key: str
    kind: str
    release: Release | str

    def __str__(self) -> str:
        return f"{self.key}-{self.kind}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose releases and kinds of shim."""
    group = parser.getgroup("integration")
    group.addoption(
        "--containerd", default="1.6", help="releases to test under: 1.6, 1.7, 2.1, all, a folder, or 1.6,2.1"
    )
    group.addoption(
        "--shim", default="", help=f"kinds of shim to test: {', '.join(KINDS)}; else as each test is meant to run"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register our marker."""
    config.addinivalue_line("markers", "every_form: the result can depend on the form of the shim's binary")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a containerd once for each flavour."""
    if "flavour" not in metafunc.fixturenames:
        return
    chosen = flavours(metafunc.config.getoption("containerd", "1.6"), kinds(metafunc))
    if not metafunc.config.getoption("shim", ""):
        # In this order a flavour has the same number in each test, by which pytest groups what shares a containerd.
        chosen = (
            *(each for each in chosen if each.kind != "onefile"),
            *(each for each in chosen[: len(KINDS)] if each.kind == "onefile"),
        )
    metafunc.parametrize("flavour", chosen, indirect=True, ids=str, scope="session")


def kinds(metafunc: pytest.Metafunc) -> tuple[str, ...]:
    """Return the kinds of shim that a test runs with.

    Raises:
        UsageError: --shim has a value that means nothing.
    """
    asked: str = metafunc.config.getoption("shim", "")
    if not asked:
        return KINDS if metafunc.definition.get_closest_marker("every_form") else KINDS[:-1]
    chosen = tuple(asked.split(","))
    if unknown := set(chosen) - set(KINDS):
        raise pytest.UsageError(f"--shim={asked}: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    return chosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests here more time than the unit tests have, unless they set their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@functools.cache
def flavours(keys: str, kinds: tuple[str, ...]) -> tuple[Flavour, ...]:
    """Return the flavours of the releases that --containerd means."""
    found: dict[str, Release | str] = {}
    for key in keys.split(","):
        try:
            if key == "all":
                found.update((release.key, release) for release in releases.find_all())
            else:
                release = releases.find(key)
                found[release.key] = release
        except ReleaseError as error:
            found[key] = str(error)
    return tuple(Flavour(key, kind, release) for key, release in found.items() for kind in kinds)


@pytest.fixture(scope="session")
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Return which kind of shim is tested under which release."""
    chosen: Flavour = request.param
    return chosen


@pytest.fixture(scope="session")
def release(flavour: Flavour) -> Release:
    """Return the release of containerd to test under; fails where the machine cannot run it."""
    if isinstance(flavour.release, str):
        pytest.fail(f"no containerd {flavour.key}: {flavour.release}", pytrace=False)
    missing = []
    if os.geteuid() != 0:
        missing.append("root: run the tests as root")
    if shutil.which("runc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is None:
        missing.append("runc: install the Debian package runc")
    try:
        image.find_busybox()
    except image.ImageError as error:
        missing.append(f"busybox: {error}")
    if missing:
        pytest.fail(f"cannot run containers without {'; '.join(missing)}", pytrace=False)
    return flavour.release


@pytest.fixture(scope="session")
def shim_folder(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds the shim under test and nothing else of that name."""
    return find_program(flavour.kind, tmp_path_factory.mktemp("unfrozen")).parent


def find_program(kind: str, folder: Path) -> Path:
    """Return the shim of a kind: of a form, or `unfrozen`, made in `folder`; fails the test if it is not built."""
    if kind != "unfrozen":
        return find_binary(BINARIES[kind])
    script = folder / SHIM
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from shim.engine.__main__ import main\nmain()\n"
    )
    script.chmod(0o755)
    return script


def find_binary(binary: Path) -> Path:
    """Return a binary below dist; fails the test when it has not been built."""
    if not os.access(binary, os.X_OK):
        name = binary.name.removeprefix("containerd-shim-").removesuffix("-v1")
        form = next((f" --form {form}" for form in BINARIES if binary.parent.name == form), "")
        pytest.fail(f"there is no {binary.relative_to(PROJECT)}: ./just build {name}{form}", pytrace=False)
    return binary


@pytest.fixture(scope="session")
def containerd(release: Release, shim_folder: Path) -> Iterator[Containerd]:
    """Return a containerd that all tests of this flavour share; in the end it must have left nothing behind."""
    with Containerd(release, [shim_folder]) as running:
        running.import_image()
        yield running
    if running.left_behind:
        pytest.fail("left behind:\n" + "\n".join(running.left_behind), pytrace=False)


@pytest.fixture(scope="session")
def events(containerd: Containerd) -> EventLog:
    """Return the events of all containers of this containerd, from its first test on."""
    return containerd.events()


# What a test uses.


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a container id that no other test has; append to it for more of them."""
    words = re.sub("[^a-z0-9]+", "-", request.function.__name__.removeprefix("test_"))
    return f"{words[:40].strip('-')}-{next(_SERIAL)}"


_SERIAL: Final = itertools.count(1)


@pytest.fixture(autouse=True)
def leaves_no_task(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task or container in the shared containerd, and remove it."""
    if "containerd" not in request.fixturenames:
        yield
        return
    containerd: Containerd = request.getfixturevalue("containerd")
    yield
    left = {what: containerd.ctr(what, "ls", "-q").stdout.split() for what in ("tasks", "containers")}
    if left["tasks"]:
        containerd.ctr("tasks", "rm", "--force", *left["tasks"], check=False)
    if left["containers"]:
        containerd.ctr("containers", "rm", *left["containers"], check=False)
    if any(left.values()):
        pytest.fail(f"the test left behind: {left}", pytrace=False)


@pytest.fixture
def remove(containerd: Containerd) -> Callable[[str], None]:
    """Return a function that kills and deletes a task, if there is one, and its container."""

    def remove_container(container: str) -> None:
        containerd.ctr("tasks", "rm", "--force", container, check=False)
        containerd.ctr("containers", "rm", container)

    return remove_container


@pytest.fixture
def connect(containerd: Containerd) -> Iterator[Callable[[str], TaskClient]]:
    """Return a function that connects to the task service of a container's shim, past containerd."""
    clients: list[TaskClient] = []

    def connect_to(container: str) -> TaskClient:
        clients.append(TaskClient(shim_address(containerd.bundle(container)), container))
        return clients[-1]

    yield connect_to
    for client in clients:
        client.close()


@pytest.fixture
def running(containerd: Containerd, name: str, remove: Callable[[str], None]) -> Iterator[str]:
    """Return the id of an ordinary container that sleeps."""
    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io"])
    yield name
    remove(name)


@pytest.fixture
def task(running: str, connect: Callable[[str], TaskClient]) -> TaskClient:
    """Return a connection to the shim of that container."""
    return connect(running)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[str], Fifo]]:
    """Return a maker of fifos with a reader, as a client of containerd makes them."""
    made: list[Fifo] = []

    def make(name: str) -> Fifo:
        made.append(Fifo(tmp_path / name))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def guests(containerd: Containerd, name: str, remove: Callable[[str], None]) -> Iterator[Guests]:
    """Return a maker of containers past containerd; all of them are gone at the end of the test."""
    containerd.run(f"{name}-host", "sleep", "1000", detach=True, options=["--null-io"])
    maker = Guests(containerd, f"{name}-host")
    yield maker
    maker.close()
    remove(maker.host)
