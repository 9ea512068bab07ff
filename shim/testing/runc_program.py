"""The program behind `fake_runc.FakeRunc`: runc's command line over plain processes, with what a test has planned.

Rule: started for every call, so nothing is imported that can wait; `python -I -S -E` runs it, from a stub.
HERE, the stub's folder, has the plans, the calls, and the processes that were started.
A container's init and execs are processes of the host with the spec's args, env and the stdio that runc passes on.
"""

from __future__ import annotations

import marshal
import os
import sys

from shim.testing.runc_state import Container, is_alive, mark, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Options with a value; the others of these commands are switches.
_VALUED = (
    *("--bundle", "-b", "--pid-file", "--console-socket", "--process", "-p", "--format", "-f", "--resources", "-r"),
    *("--image-path", "--work-path", "--parent-path", "--empty-ns", "--root", "--log", "--log-format", "--criu"),
)

# What runc puts before the texts of its errors, and the status it ends with.
_PREFIXES = {"create": ("runc create failed: ", 1), "exec": ("exec failed: ", 255)}
_DOES_NOT_EXIST = "container does not exist"


class RuncError(Exception):
    """runc ends with this text."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class _Planned(RuncError):
    """The test has planned this end."""


class Call:
    """One call of the program: its words, taken apart."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.command = ""
        self.options: dict[str, str] = {}
        self.names: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("-") and len(word) > 1:
                name, is_joined, value = word.partition("=")
                name = "-" + name if name[1] != "-" and len(name) > 2 else name
                if not is_joined and name in _VALUED:
                    value = rest.pop(0) if rest else ""
                self.options[name] = value
            elif not self.command:
                self.command = word
            else:
                self.names.append(word)

    @property
    def id(self) -> str:
        """The container, or ''."""
        return self.names[0] if self.names else ""

    def option(self, *names: str) -> str:
        """Return the value of an option that has several names."""
        return next((self.options[name] for name in names if name in self.options), "")


class Program:
    """One run."""

    def __init__(self, here: str, words: list[str]) -> None:
        self.here = here
        self.call = Call(words)
        self.container = Container(self.call.options.get("--root", "/run/runc"), self.call.id)
        self.plan = self._take_plan()

    def run(self, commands: dict[str, Callable[[Program], None]]) -> int:
        """Do what was asked; return the exit status."""
        self._note()
        try:
            self.reach("at first")
            if self.plan.get("output") is not None:
                os.write(1, self.plan["output"])
            else:
                self._act(commands)
            self.reach("before the answer")
        except RuncError as error:
            self._tell(str(error))
            return error.status
        return 0

    def _act(self, commands: dict[str, Callable[[Program], None]]) -> None:
        command = self.call.command
        if command not in commands:
            raise RuncError(f"No help topic for '{command}'", 3)
        prefix, status = _PREFIXES.get(command, ("", 1))
        try:
            commands[command](self)
        except _Planned:
            raise  # in the test's words
        except RuncError as error:
            raise RuncError(f"{prefix}{error}", status) from None

    def _note(self) -> None:
        """Record the call."""
        descriptors = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                pass  # that of the listing itself
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = ""  # it has been removed under the caller
        record = marshal.dumps([self.call.words, dict(os.environ), descriptors, cwd, os.getpid()], 4)
        fd = os.open(os.path.join(self.here, "calls"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, len(record).to_bytes(4, "big") + record)
        os.close(fd)

    def _take_plan(self) -> dict[str, Any]:
        """Return what the test has planned for this call: the oldest plan of the command, used up if it is for once."""
        folder = os.path.join(self.here, "plans")
        for name in sorted(os.listdir(folder)):
            number, command, kind = name.split("-")
            if command not in (self.call.command, "any"):
                continue
            path = os.path.join(folder, name)
            if kind == "once":
                mine = os.path.join(self.here, f"taken-{number}")
                try:
                    os.rename(path, mine)
                except FileNotFoundError:
                    continue  # another call was faster
                path = mine
            with open(path, "rb") as file:
                plan: dict[str, Any] = marshal.load(file)  # noqa: S302  # the test wrote it
            return plan
        return {}

    def reach(self, moment: str) -> None:
        """Do what is planned for a moment."""
        plan = self.plan
        if plan.get("moment") != moment:
            return
        if plan.get("gate"):
            with open(f"{plan['gate']}.{os.getpid()}", "w"):
                pass
            wait(lambda: os.path.exists(f"{plan['gate']}.open"), self.here)
        if plan.get("raw"):
            for fd, data in plan["raw"]:
                os.write(fd, data)
        if plan.get("log") is not None and "--log" in self.call.options:
            with open(self.call.options["--log"], "ab") as file:
                file.write(plan["log"])
        if plan.get("signal"):
            os.kill(os.getpid(), plan["signal"])
        if plan.get("text") is not None:
            raise _Planned(plan["text"], plan["status"])
        if plan.get("status"):
            os._exit(plan["status"])

    def _tell(self, text: str) -> None:
        """Say why this fails, in the log and on stderr, as runc does."""
        log = self.call.options.get("--log")
        if log:
            import json

            entry: dict[str, str] = {"level": "error", "msg": text, "time": "2024-01-02T03:04:05Z"}
            with open(log, "a") as file:
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        os.write(2, f"{text}\n".encode())

    # Processes.

    def existing(self) -> Container:
        """Return the container, which has to exist."""
        if not self.call.id:
            raise RuncError(f'{sys.argv[0]}: "{self.call.command}" requires exactly 1 argument(s)')
        if not self.container.exists:
            raise RuncError(_DOES_NOT_EXIST)
        return self.container

    def spawn(self, process: dict[str, Any], fifo: str) -> int:
        """Start a process of a container, which waits for `fifo` to be opened, if any, and then runs its args."""
        console = self.call.option("--console-socket")
        terminal = send_terminal(console) if console else -1
        pid = os.fork()
        if pid:
            if terminal >= 0:
                os.close(terminal)
            with open(os.path.join(self.here, "pids"), "a") as file:
                file.write(f"{mark(pid)}\n")
            return pid
        try:
            if terminal >= 0:
                os.login_tty(terminal)
            else:
                os.setsid()
            early = self.plan.get("init_exits")
            if early is not None:
                os._exit(early)
            if fifo:
                fd = os.open(fifo, os.O_WRONLY)  # until `start` reads
                os.write(fd, b"0")
                os.close(fd)
            os.chdir(process["cwd"] if os.path.isdir(process.get("cwd", "")) else "/")
            os.execvpe(process["args"][0], process["args"], environment_of(process))  # noqa: S606
        except OSError as error:
            os.write(2, f"exec {error}\n".encode())
        finally:
            os._exit(127)

    def started(self, pid: int, write: Callable[[str], None]) -> None:
        """Note a process that has been started, in the state and in the pid file."""
        write(mark(pid))  # as runc does: whatever happens from here on, `delete --force` finds the process
        self.reach("before the pid file")
        path = self.call.option("--pid-file")
        if path:
            # As runc does: a reader finds all of it or nothing.
            hidden = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
            with open(hidden, "w") as file:
                file.write(str(pid))
            os.rename(hidden, path)
        if self.plan.get("init_exits") is not None:
            marked = mark(pid)
            wait(lambda: not is_alive(marked), self.here)
        self.reach("after the pid file")


def send_terminal(path: str) -> int:
    """Send the master of a new terminal to a console socket, and return the other end."""
    import _socket

    master, terminal = os.openpty()
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.connect(path)
    name = os.ttyname(terminal).encode()
    sock.sendmsg([name], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, sys.byteorder))])
    sock.close()
    os.close(master)
    return terminal


def environment_of(process: dict[str, Any]) -> dict[str, str]:
    """Return the environment that a process's spec gives it, and nothing of ours."""
    return dict(entry.split("=", 1) for entry in process.get("env", ()) if "=" in entry)
