"""Shows the shim at work in a private containerd: `python -m shim.testing.demo`, run by `./just demo`.

Installs the system packages it needs, builds the frozen binary, then runs, enters, measures, stops and deletes real
containers, printing each command and its output, and checks that nothing is left behind. Needs root on Linux.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shim.testing import releases, sweep
from shim.testing.containerd import RUNTIME, CommandError, Containerd
from shim.testing.events import EventLog
from shim.testing.image import IMAGE, ImageError
from shim.testing.releases import Release, ReleaseError

_PROJECT: Final = Path(__file__).resolve().parents[2]
_INDENT: Final = "  "
_LIFE: Final = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
_EXEC: Final = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
_BOLD, _DIM, _PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m")


class StepError(Exception):
    """A step of the demo did not do what it should."""


class Screen:
    """Writes headings, commands and output; in colour only on a terminal."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def heading(self, text: str) -> None:
        """Begin a step."""
        self.line()
        self.line(text, _BOLD)

    def command(self, words: Sequence[str]) -> None:
        """Show a command line that is about to run."""
        self.line(f"{_INDENT}$ {shlex.join(words)}", _BOLD)

    def output(self, text: str) -> None:
        """Show what a command printed."""
        for line in text.splitlines():
            self.line((_INDENT + line).rstrip())

    def remark(self, text: str) -> None:
        """Say something about what was seen."""
        self.line(f"{_INDENT}{text}", _DIM)

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line."""
        sys.stdout.write(f"{style}{text}{_PLAIN}\n" if style and self._coloured else f"{text}\n")
        sys.stdout.flush()


class Demo:
    """The steps, in order, in one containerd."""

    def __init__(self, containerd: Containerd, screen: Screen) -> None:
        self._containerd = containerd
        self._screen = screen

    def run(self) -> None:
        """Go through all steps.

        Raises:
            StepError: something was not as it should be.
        """
        screen, containerd = self._screen, self._containerd
        screen.heading(f"A private containerd {containerd.release.version}, in namespace {containerd.namespace}")
        screen.line(
            f"{_INDENT}$ export CONTAINERD_ADDRESS={containerd.address} CONTAINERD_NAMESPACE={containerd.namespace}"
        )
        if containerd.release.source != "installed":
            screen.line(f"{_INDENT}$ PATH={containerd.release.folder}:$PATH")
        containerd.import_image()
        events = containerd.events()
        self._run_attached()
        self._run_detached()
        self._stop_detached()
        self._show_events(events)

    def _run_attached(self) -> None:
        self._screen.heading("Run a container: its output comes from the inside")
        output = self._ctr(*self._run("hello", "--rm"), "sh", "-c", "uname -sr; id; hostname; echo I am process $$")
        self._expect("uid=0" in output and "I am process 1" in output, "the container did not print what it should")
        self._screen.heading("An exit code is carried through")
        self._ctr(*self._run("seven", "--rm"), "sh", "-c", "exit 7", code=7)
        self._screen.remark("(ctr's own exit code was 7)")

    def _run_detached(self) -> None:
        self._screen.heading("Leave one running, and look into it")
        self._ctr(*self._run("sleeper", "--detach", "--null-io"), "sleep", "300")
        self._expect("RUNNING" in self._ctr("tasks", "ls"), "the container is not running")
        for process in self._containerd.shims():
            self._screen.remark(f"served by {process}")
        output = self._ctr("tasks", "exec", "--exec-id", "look", "sleeper", "ps")
        self._expect("sleep 300" in output, "the process list has no `sleep 300`")
        output = self._ctr("tasks", "metrics", "sleeper")
        self._expect("sleeper" in output and "memory" in output, "there are no metrics")

    def _stop_detached(self) -> None:
        self._screen.heading("Stop and delete it")
        self._ctr("tasks", "kill", "--signal", "SIGKILL", "sleeper")
        self._containerd.wait_status("sleeper", "STOPPED")
        self._ctr("tasks", "ls")
        self._ctr("tasks", "delete", "sleeper", code=None)
        self._ctr("containers", "rm", "sleeper")
        self._expect("sleeper" not in self._ctr("tasks", "ls"), "the task is still listed")

    def _show_events(self, events: EventLog) -> None:
        self._screen.heading("The events that containerd saw")
        expected = {"hello": _LIFE, "seven": _LIFE, "sleeper": [*_LIFE[:2], *_EXEC, *_LIFE[2:]]}
        events.wait("/tasks/delete", "sleeper")
        for event in events.all(prefix="/tasks/"):
            facts = [
                f"{name} {event.body[name]}" for name in ("exec_id", "id", "pid", "exit_status") if name in event.body
            ]
            self._screen.output(f"{event.topic:<20} {event.container:<8} {', '.join(facts)}".rstrip())
        for container, topics in expected.items():
            seen = events.topics(container)
            self._expect(seen == topics, f"the events of {container} should be {topics}, but are {seen}")

    def _run(self, container: str, *options: str) -> list[str]:
        if self._containerd.snapshotter != "overlayfs":
            options = (*options, "--snapshotter", self._containerd.snapshotter)
        return ["run", *options, "--runtime", self._containerd.runtime, IMAGE, container]

    def _ctr(self, *args: str, code: int | None = 0) -> str:
        """Show and run a real `ctr` command; fail unless it ends with `code` (None: whatever it is)."""
        command = ["ctr", *args]
        self._containerd.remember(*args)
        self._screen.command(command)
        try:
            done = subprocess.run(
                command,
                env=self._containerd.client_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StepError("the command took longer than 60 s") from None
        self._screen.output(done.stdout)
        self._expect(code is None or done.returncode == code, f"exit code {done.returncode} where {code} was expected")
        return done.stdout

    def _expect(self, claim: bool, otherwise: str) -> None:
        if not claim:
            raise StepError(otherwise)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shim.testing.demo", description="Shows the shim at work.")
    parser.add_argument(
        "--runtime", default=RUNTIME, help="runtime to show (default: %(default)s, which is built first)"
    )
    parser.add_argument(
        "--containerd", metavar="RELEASE", help="containerd release, such as 1.7 (default: the installed)"
    )
    options = parser.parse_args(argv)
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        sys.stderr.write("the demo runs real containers: it needs Linux and root\n")
        return 1
    began = time.monotonic()
    screen = Screen()
    try:
        with sweep.interruptible():
            _prepare(screen, options.runtime)
            left_behind = _show(screen, options.runtime, _release(options.containerd))
    except KeyboardInterrupt:
        screen.line("\ninterrupted; everything that the demo started is stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more, the last flush included
        return 1
    except (CommandError, ImageError, ReleaseError, StepError, OSError) as error:
        screen.line(f"\nfailed: {error}")
        return 1
    screen.heading("What is left behind")
    for line in left_behind:
        screen.output(line)
    if left_behind:
        screen.line("\nfailed: that should not be there any more (it was removed by force)")
        return 1
    screen.output("nothing: no process, mount, socket, cgroup, engine state, bundle or temporary file")
    screen.line()
    screen.line(f"All of it worked, with {options.runtime}, in {time.monotonic() - began:.0f} s.")
    return 0


def _show(screen: Screen, runtime: str, release: Release) -> list[str]:
    containerd = Containerd(release, [_PROJECT / "dist"], runtime=runtime, namespace=f"demo-{secrets.token_hex(2)}")
    with containerd:
        try:
            Demo(containerd, screen).run()
        except StepError as error:
            raise StepError(f"{error}\n--- log of containerd and the shim\n{containerd.tail()}") from None
    return containerd.left_behind


def _prepare(screen: Screen, runtime: str) -> None:
    """Make sure that the system packages and the shim's binary are there.

    Raises:
        StepError: one of them cannot be had.
    """
    packages = [str(_PROJECT / "packaging" / "system-packages"), "demo"]
    if subprocess.run(packages, check=False, stdin=subprocess.DEVNULL).returncode:
        raise StepError("system packages are missing")
    if runtime != RUNTIME:
        return
    screen.heading("Build the shim (minutes on a new machine, where Python is compiled; then seconds, or nothing)")
    command = ["python", "build/spec/build.py", "pyrunc"]
    screen.command(command)
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=_PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # on stderr it says how far it is, and why it fails
        check=False,
    )
    binary = _PROJECT / "dist" / "containerd-shim-pyrunc-v1"
    if done.returncode or not binary.is_file():
        raise StepError(f"the build ended with {done.returncode}")
    screen.output(f"{binary.relative_to(_PROJECT)}: {binary.stat().st_size / 1e6:.1f} MB, one file")


def _release(key: str | None) -> Release:
    release = releases.find(key) if key else releases.installed()
    if release is None:
        raise StepError("containerd is not installed")
    return release


if __name__ == "__main__":
    sys.exit(main())
