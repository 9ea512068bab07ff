"""shim.testing's runc speaks as the real one does: the same calls, the same words, exit codes and logs.

The texts are those of runc 1.1; a runc of another line is asked for what it has in common with it.
"""

import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.testing import FakeRunc, image, wait_until
from tests.fakes import PATIENCE_S


class Engine:
    """A runtime with a bundle, to be asked."""

    def __init__(self, folder: Path, program: str) -> None:
        self.program = program
        self.folder = folder
        self.name = f"c{secrets.token_hex(4)}"
        (folder / "bundle/rootfs/bin").mkdir(parents=True)
        (folder / "bundle/rootfs/proc").mkdir()
        shutil.copy(image.find_busybox(), folder / "bundle/rootfs/bin/busybox")
        for applet in ("sleep", "true"):
            (folder / "bundle/rootfs/bin" / applet).symlink_to("busybox")
        self.wants("sleep", "1000")
        (folder / "resources.json").write_text("{}")

    def process(self, *args: str) -> dict[str, object]:
        """Return the process of a spec."""
        return {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin:/usr/bin"], "cwd": "/"}

    def wants(self, *args: str) -> None:
        """Write a spec, and an exec's, with these args."""
        spec = {
            "ociVersion": "1.0.2",
            "process": self.process(*args),
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": f"/{self.name}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            },
        }
        (self.folder / "bundle/config.json").write_text(json.dumps(spec))
        (self.folder / "process.json").write_text(json.dumps(self.process(*args)))

    def ask(self, *words: str) -> tuple[int, str, list[str]]:
        """Do a call; return its exit code, what it says on stderr, and what it logs."""
        log = self.folder / "log.json"
        log.unlink(missing_ok=True)
        options = ["--root", str(self.folder / "root"), "--log", str(log), "--log-format", "json"]
        names = {"NAME": self.name, "FOLDER": str(self.folder)}
        filled = ["".join(names.get(part, part) for part in word.split("%")) for word in words]
        errors = self.folder / "errors"
        with errors.open("wb") as stderr:  # a container's init keeps it open
            done = subprocess.run(
                [self.program, *options, *filled],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                timeout=PATIENCE_S,
            )
        logged = log.read_text().splitlines() if log.exists() else []
        messages = [json.loads(line)["msg"].strip() for line in logged]
        return done.returncode, self._named(errors.read_text()), [self._named(message) for message in messages]

    def _named(self, text: str) -> str:
        """Put names for what differs from engine to engine."""
        for name, value in (("RUNC", self.program), ("FOLDER", str(self.folder)), ("NAME", self.name)):
            text = text.replace(value, name)
        return text

    def status(self) -> str:
        """Return what `state` says."""
        words = [self.program, "--root", str(self.folder / "root"), "state", self.name]
        done = subprocess.run(words, capture_output=True, timeout=PATIENCE_S)
        facts = json.loads(done.stdout) if done.returncode == 0 else {"status": "none"}
        return str(facts["status"])


CREATE = ("create", "--bundle", "%FOLDER%/bundle", "--pid-file", "%FOLDER%/pid", "%NAME%")
EXEC = ("exec", "--detach", "--process", "%FOLDER%/process.json", "--pid-file", "%FOLDER%/exec.pid", "%NAME%")


def unknown(engine: Engine) -> Iterator[object]:
    """Ask for a container that is not there."""
    for command in ("start", "kill", "delete", "pause", "resume", "ps", "state"):
        yield engine.ask(command, "%NAME%")
    yield engine.ask("kill", "--all", "%NAME%", "9")
    yield engine.ask("delete", "--force", "%NAME%")
    yield engine.ask(*EXEC)
    yield engine.ask("update", "--resources", "%FOLDER%/resources.json", "%NAME%")
    yield engine.ask("no-such-command")
    yield engine.ask("start")


def refused(engine: Engine) -> Iterator[object]:
    """Ask for what cannot be created."""
    yield engine.ask("create", "--bundle", "%FOLDER%/nowhere", "%NAME%")
    engine.wants("no-such-program")
    yield engine.ask(*CREATE)
    yield engine.status()


def whole_life(engine: Engine) -> Iterator[object]:
    """Ask for the right and for the wrong thing at each point of a life."""
    yield engine.ask(*CREATE)
    yield engine.ask(*CREATE)
    yield engine.status()
    yield engine.ask("resume", "%NAME%")
    yield engine.ask("start", "%NAME%")
    yield engine.ask("start", "%NAME%")
    yield engine.status()
    yield engine.ask("delete", "%NAME%")
    yield engine.ask("kill", "%NAME%", "NOSUCH")
    yield engine.ask(*EXEC)
    engine.wants("no-such-program")
    yield engine.ask(*EXEC)
    (engine.folder / "process.json").unlink()
    yield engine.ask(*EXEC)
    yield engine.ask("pause", "%NAME%")
    yield engine.status()
    yield engine.ask("pause", "%NAME%")
    yield engine.ask("resume", "%NAME%")
    yield engine.ask("resume", "%NAME%")
    yield engine.ask("kill", "%NAME%", "9")
    yield wait_until(lambda: engine.status() == "stopped")
    yield engine.ask("kill", "%NAME%", "9")
    yield engine.ask("kill", "--all", "%NAME%", "9")
    yield engine.ask("start", "%NAME%")
    yield engine.ask("pause", "%NAME%")
    yield engine.ask("resume", "%NAME%")
    yield engine.ask("ps", "--format", "json", "%NAME%")
    yield engine.ask("update", "--resources", "%FOLDER%/resources.json", "%NAME%")
    yield engine.ask("delete", "%NAME%")
    yield engine.ask("delete", "%NAME%")


def created_and_deleted(engine: Engine) -> Iterator[object]:
    """Delete what was never started."""
    yield engine.ask(*CREATE)
    yield engine.ask("delete", "%NAME%")
    yield engine.status()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("talk", [unknown, refused, whole_life, created_and_deleted])
def test_the_fake_answers_as_runc_does(talk: Callable[[Engine], Iterator[object]], tmp_path: Path) -> None:
    """Call by call."""
    runc = shutil.which("runc")
    assert runc is not None, "the tests of this folder need runc"
    real = Engine(tmp_path / "real", runc)
    try:
        expected = list(talk(real))
    finally:
        real.ask("delete", "--force", "%NAME%")
    with FakeRunc(tmp_path / "bin") as program:
        found = list(talk(Engine(tmp_path / "fake", program.path)))

    assert expected == found
