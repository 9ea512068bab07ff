"""runc's command line, word for word, and what its failures mean."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.engine.call import ChildFds
from shim.engine.options import Checkpointing
from shim.engine.runc import Runc, global_arguments, kill_error, last_error
from shim.errors import EngineError, NotFoundError, ShimError
from shim.runtime.reaper import ForegroundReaper
from shim.testing import FakeRunc
from shim.ttrpc import Code
from tests.engine.world import in_thread
from tests.fakes import PATIENCE_S


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunc]:
    """A runc on PATH."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with FakeRunc(tmp_path / "bin") as fake:
        monkeypatch.setenv("PATH", fake.search_path)
        yield fake


@pytest.fixture
def runc(tmp_path: Path, fake: FakeRunc) -> Runc:
    """A container's runtime, with its bundle; its init does nothing for long."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    return Runc(ForegroundReaper(), "c1", str(bundle), "ns", root=str(tmp_path / "root"))


def pid_file(runc: Runc) -> str:
    """Return where create leaves the pid."""
    return os.path.join(runc.bundle, "init.pid")


def create(runc: Runc) -> int:
    """Create the container, without any stdio, and return its pid."""
    runc.create(pid_file(runc), ChildFds(), None)
    return int(Path(pid_file(runc)).read_text())


def end(runc: Runc) -> None:
    """End a container that was created."""
    runc.delete(is_forced=True)


def globals_of(runc: Runc) -> list[str]:
    """Return the words that every call begins with."""
    return ["--root", f"{runc.root}/ns", "--log", f"{runc.bundle}/log.json", "--log-format", "json"]


def test_every_call_works_in_the_bundle(runc: Runc, fake: FakeRunc, tmp_path: Path) -> None:
    """Where a wrapper around runc finds config.json, as under Go's shim; the shim's own folder stays."""
    before = os.getcwd()
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\npwd >>"{tmp_path}/folders"\nexec "{fake.path}" "$@"\n')
    wrapper.chmod(0o755)
    runc = runc._replace(binary=str(wrapper))
    create(runc)
    runc.start()
    runc.exec(b"{}", f"{runc.bundle}/e1.pid", ChildFds(), None)
    runc.processes()
    runc.kill(0)
    end(runc)

    assert [runc.bundle] * 6 == (tmp_path / "folders").read_text().split()
    assert before == os.getcwd()


def test_call_is_made_when_the_bundle_is_gone(runc: Runc, fake: FakeRunc, tmp_path: Path) -> None:
    """A container outlives its bundle, and must still end."""
    create(runc)
    shutil.rmtree(runc.bundle)
    end(runc)

    assert not (tmp_path / "root" / "ns" / "c1").exists()


def test_every_call_has_its_words(runc: Runc, fake: FakeRunc, tmp_path: Path) -> None:
    """In runc's order, behind the globals."""
    b = runc.bundle
    create(runc)
    runc.start()
    runc.exec(b"{}", f"{b}/e1.pid", ChildFds(), None)
    runc.pause()
    runc.resume()
    runc.processes()
    runc.update(b"{}")
    runc.kill(0)
    runc.kill(9)
    runc.kill(15, is_all=True)
    end(runc)
    runc.delete()
    first = globals_of(runc)
    calls = fake.words()
    process_file = calls[2][8]

    assert [first] * 12 == [call[:6] for call in calls]
    assert [
        ["create", "--bundle", b, "--pid-file", f"{b}/init.pid", "c1"],
        ["start", "c1"],
        ["exec", "--process", process_file, "--detach", "--pid-file", f"{b}/e1.pid", "c1"],
        ["pause", "c1"],
        ["resume", "c1"],
        ["ps", "--format", "json", "c1"],
        ["update", "--resources=-", "c1"],
        ["kill", "c1", "0"],
        ["kill", "c1", "9"],
        ["kill", "--all", "c1", "15"],
        ["delete", "--force", "c1"],
        ["delete", "c1"],
    ] == [call[6:] for call in calls]
    assert process_file.startswith(f"{b}/runc-process")  # which goes with the container, whoever is killed
    assert not os.path.exists(process_file)


def test_a_checkpoint_and_its_restore_have_their_words(runc: Runc, fake: FakeRunc, tmp_path: Path) -> None:
    """The least and the most that options can ask for."""
    b, image = runc.bundle, str(tmp_path / "image")
    fake.says("any")
    runc.checkpoint(image, "/w", Checkpointing())
    runc.checkpoint(image, "/w", Checkpointing(True, True, True, True, True, ("network", "ipc"), "/ignored", "/p"))
    runc.checkpoint(image, "/w", Checkpointing(open_tcp=True, file_locks=True))
    runc.restore(image, "", pid_file(runc), ChildFds(), None)
    changed = runc._replace(no_pivot_root=True, criu_work_path="/cw")
    changed.restore(image, "/p", pid_file(runc), ChildFds(), "/s")

    assert [
        ["checkpoint", "--image-path", image, "--work-path", "/w", "--leave-running", "c1"],
        [
            *["checkpoint", "--image-path", image, "--work-path", "/w", "--parent-path", "/p"],
            *["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"],
            *["--empty-ns", "network", "--empty-ns", "ipc", "c1"],
        ],
        [
            *["checkpoint", "--image-path", image, "--work-path", "/w"],
            *["--tcp-established", "--file-locks", "--leave-running", "c1"],
        ],
        [
            *["restore", "--image-path", image, "--work-path", f"{b}/work"],
            *["--detach", "--pid-file", f"{b}/init.pid", "-no-subreaper", "--bundle", b, "c1"],
        ],
        [
            *["restore", "--image-path", image, "--work-path", "/cw", "--parent-path", "/p"],
            *["--detach", "--pid-file", f"{b}/init.pid", "--console-socket", "/s", "--no-pivot"],
            *["-no-subreaper", "--bundle", b, "c1"],
        ],
    ] == [call[6:] for call in fake.words()]


def test_options_become_words(runc: Runc, fake: FakeRunc) -> None:
    """Each where runc wants it; a console socket too."""
    fake.says("any")
    changed = runc._replace(systemd_cgroup=True, no_pivot_root=True, no_new_keyring=True)
    changed.create(pid_file(runc), ChildFds(), "/s")
    changed.exec(b"{}", f"{runc.bundle}/e1.pid", ChildFds(), "/s")
    create_call, exec_call = fake.words()
    first = [*globals_of(runc), "--systemd-cgroup"]

    assert [
        *first,
        *["create", "--bundle", runc.bundle, "--pid-file", pid_file(runc), "--console-socket", "/s"],
        *["--no-pivot", "--no-new-keyring", "c1"],
    ] == create_call
    assert [
        *[*first, "exec", "--process", exec_call[9], "--console-socket", "/s"],
        *["--detach", "--pid-file", f"{runc.bundle}/e1.pid", "c1"],
    ] == exec_call


@pytest.mark.parametrize(
    ("binary", "root", "expected"),
    [
        ("", "", ["runc", "--root", "/run/containerd/runc/ns"]),
        ("/opt/crun", "/r", ["/opt/crun", "--root", "/r/ns"]),
    ],
)
def test_global_arguments_have_defaults(binary: str, root: str, expected: list[str]) -> None:
    """A runtime's state of a namespace is a folder of its own."""
    words = global_arguments(binary, root, "ns", "/b/log.json")

    assert [*expected, "--log", "/b/log.json", "--log-format", "json"] == words


def test_a_container_gets_the_descriptors_it_was_given(runc: Runc) -> None:
    """As its own stdin, stdout and stderr; the others are /dev/null."""
    script = "read -r line; echo out $line; readlink /proc/self/fd/2; echo done"
    Path(runc.bundle, "config.json").write_text(json.dumps({"process": {"args": ["sh", "-c", script]}}))
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    runc.create(pid_file(runc), ChildFds(in_read, out_write), None)
    for fd in (in_read, out_write):
        os.close(fd)
    os.write(in_write, b"hello\n")
    runc.start()
    with open(out_read) as file:
        lines = file.read().splitlines()
    os.close(in_write)
    end(runc)

    assert ["out hello", "/dev/null", "done"] == lines


def test_an_exec_spec_is_seen_by_its_owner_alone(runc: Runc, fake: FakeRunc) -> None:
    """The file is there while runc reads it; what it says is what was asked for."""
    create(runc)
    gate = fake.hangs("exec")
    thread, errors = in_thread(lambda: runc.exec(b'{"args":["sleep","9"]}', f"{runc.bundle}/e1.pid", ChildFds(), None))
    gate.wait_reached()
    spec = Path(fake.words()[1][8])
    mode, text = stat.S_IMODE(spec.stat().st_mode), spec.read_text()
    gate.release()
    thread.join(PATIENCE_S)

    assert [] == errors
    assert (0o600, {"args": ["sleep", "9"]}) == (mode, json.loads(text))


def test_the_spec_file_is_gone_after_a_failure(runc: Runc, tmp_path: Path) -> None:
    """Whatever the reason."""
    for binary in ("runc", "no-such"):
        with pytest.raises(EngineError):
            runc._replace(binary=binary).exec(b"{}", f"{runc.bundle}/e1.pid", ChildFds(), None)

    assert [] == [*tmp_path.glob("runc-process*")]


def test_resources_arrive_on_stdin(runc: Runc) -> None:
    """Of any size."""
    create(runc)
    data = json.dumps({"memory": {"limit": 1}, "padding": "x" * 300_000}).encode()
    runc.update(data)
    got = Path(f"{runc.root}/ns/c1/resources").read_bytes()
    end(runc)

    assert data == got


@pytest.mark.parametrize(
    ("output", "expected"),
    [(b"null", []), (b"[]", []), (b"[1,2]", [1, 2]), (b"[\n  12,\n  34\n]", [12, 34])],
)
def test_processes_are_read_as_runc_and_crun_print_them(
    runc: Runc, fake: FakeRunc, output: bytes, expected: list[int]
) -> None:
    """`null` for none, or an array, pretty or not."""
    fake.says("ps", output)

    assert expected == runc.processes()


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"errors": b"boo\n", "status": 3}, "runc did not terminate successfully: exit status 3: boo"),
        ({"status": 1}, "runc did not terminate successfully: exit status 1"),
        ({"output": b"no\n"}, "runc ps: no JSON: 'no\\n'"),
        (None, "runc did not terminate successfully: exit status 137"),
    ],
)
def test_a_failed_ps_says_what_runc_said(
    runc: Runc, fake: FakeRunc, plan: dict[str, Any] | None, expected: str
) -> None:
    """Both of its outputs, and the status."""
    if plan is None:
        fake.dies("ps", at="at first")
    else:
        fake.says("ps", **plan)
    with pytest.raises(EngineError) as caught:
        runc.processes()

    assert expected == str(caught.value)
    assert Code.UNKNOWN is caught.value.code


def test_a_failed_update_says_what_runc_said(runc: Runc, fake: FakeRunc) -> None:
    """In the words of Go's shim."""
    fake.says("update", b"one\n", errors=b"two\n", status=1)
    with pytest.raises(EngineError) as caught:
        runc.update(b"{}")

    assert "runc did not terminate successfully: exit status 1: one\ntwo" == str(caught.value)


CALLS = {
    "create": "OCI runtime create failed",
    "start": "OCI runtime start failed",
    "exec": "OCI runtime exec failed",
    "pause": "OCI runtime pause failed",
    "resume": "OCI runtime resume failed",
    "delete": "failed to delete task",
}


def run(runc: Runc, command: str) -> None:
    """Make one of those calls."""
    {
        "create": lambda: runc.create(pid_file(runc), ChildFds(), None),
        "start": runc.start,
        "exec": lambda: runc.exec(b"{}", f"{runc.bundle}/e1.pid", ChildFds(), None),
        "pause": runc.pause,
        "resume": runc.resume,
        "delete": runc.delete,
    }[command]()


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize(
    ("log", "status", "expected"),
    [
        pytest.param(b'{"level":"error","msg":"  why  "}', 1, "why", id="its log's words"),
        pytest.param(b'{"level":"error","msg":"first"}{"level":"error","msg":"last"}\n', 1, "last", id="the last one"),
        pytest.param(b'{"msg":"crun","time":"t","level":"error"}', 1, "crun", id="any order"),
        pytest.param(b'\n\n{"level":"error",\n "msg":"two lines"}\n', 1, "two lines", id="any layout"),
        pytest.param(
            b'{"level":"warning","msg":"w"} {"level":"info"}\n',
            4,
            "runc did not terminate successfully: exit status 4",
            id="no error",
        ),
        pytest.param(
            None,
            5,
            "unable to retrieve OCI runtime error (open {log}: no such file or directory): "
            "runc did not terminate successfully: exit status 5",
            id="no log",
        ),
        pytest.param(
            b"panic: x\n",
            6,
            "unable to retrieve OCI runtime error (Expecting value: line 1 column 1 (char 0)): "
            "runc did not terminate successfully: exit status 6",
            id="a log that is none",
        ),
    ],
)
def test_a_failure_is_told_in_the_runtimes_words(
    runc: Runc, fake: FakeRunc, command: str, log: bytes | None, status: int, expected: str
) -> None:
    """The last error of its log, else the status, behind the words that clients know."""
    fake.says(command, log=log, status=status)
    with pytest.raises(EngineError) as caught:
        run(runc, command)

    assert f"{CALLS[command]}: {expected.format(log=runc.log)}" == str(caught.value)


@pytest.mark.parametrize("command", ["start", "pause", "delete"])
def test_output_is_told_where_the_log_has_nothing(runc: Runc, fake: FakeRunc, command: str) -> None:
    """Of those calls whose output is not the container's."""
    fake.says(command, b"some words\n", errors=b"more\n", log=b"", status=2)
    with pytest.raises(EngineError) as caught:
        run(runc, command)

    expected = "runc did not terminate successfully: exit status 2: some words\nmore"
    assert f"{CALLS[command]}: {expected}" == str(caught.value)


def test_an_old_error_is_not_told_again(runc: Runc, fake: FakeRunc) -> None:
    """The log grows over a container's life."""
    Path(runc.log).write_text('{"level":"error","msg":"of yesterday, gr\u00fc\u00dfe"}\n')
    fake.says("pause", status=1, once=True)
    with pytest.raises(EngineError) as first:
        runc.pause()
    fake.fails("pause", "new")
    with pytest.raises(EngineError) as second:
        runc.pause()

    assert "OCI runtime pause failed: runc did not terminate successfully: exit status 1" == str(first.value)
    assert "OCI runtime pause failed: new" == str(second.value)


@pytest.mark.parametrize("command", CALLS)
def test_a_missing_runtime_is_named(runc: Runc, command: str) -> None:
    """In Go's words, which clients look for; Delete must not take it for a container that is gone."""
    with pytest.raises(EngineError) as caught:
        run(runc._replace(binary="no-runc"), command)

    assert (
        f"{CALLS[command]}: unable to retrieve OCI runtime error (open {runc.log}: no such file or directory): "
        'exec: "no-runc": executable file not found in $PATH'
    ) == str(caught.value)


def test_a_runtime_that_cannot_be_run_is_named(runc: Runc, tmp_path: Path) -> None:
    """By its path, with the reason."""
    Path(runc.log).touch()
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "plain").chmod(0o755)
    for path, reason in {tmp_path / "plain": "exec format error", tmp_path / "no": "no such file or directory"}.items():
        with pytest.raises(EngineError) as caught:
            runc._replace(binary=str(path)).delete()

        assert f"failed to delete task: fork/exec {path}: {reason}" == str(caught.value)


def test_a_missing_runtime_fails_calls_without_a_log_too(runc: Runc) -> None:
    """With UNKNOWN: by NOT_FOUND clients would take the container for dead."""
    missing = runc._replace(binary="no-runc")
    for call in (missing.processes, lambda: missing.kill(9), lambda: missing.update(b"")):
        with pytest.raises(EngineError) as caught:
            call()

        assert 'exec: "no-runc": executable file not found in $PATH' == str(caught.value)
        assert Code.UNKNOWN is caught.value.code


@pytest.mark.parametrize(
    "text", [None, b"error opening file '/run/x/status': No such file or directory\n"], ids=["runc", "crun"]
)
def test_a_container_that_is_gone_counts_as_deleted(runc: Runc, fake: FakeRunc, text: bytes | None) -> None:
    """In runc's and in crun's words."""
    if text is not None:
        fake.says("delete", errors=text, log=b"", status=1)
    runc.delete()


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("os: process already finished", NotFoundError, "process already finished: not found"),
        ("x: container not running: y", NotFoundError, "process already finished: not found"),
        ("kill container: No such process", NotFoundError, "process already finished: not found"),
        ("container does not exist", NotFoundError, "no such container: not found"),
        ("cannot open directory '/x': No such file or directory", NotFoundError, "no such container: not found"),
        ("permission denied", EngineError, "unknown error after kill: permission denied"),
    ],
)
def test_kill_error_maps_what_runtimes_say(text: str, kind: type[ShimError], expected: str) -> None:
    """Clients treat NOT_FOUND as dead already."""
    error = kill_error(text)

    assert (kind, expected) == (type(error), str(error))


def test_kill_maps_failures_and_lets_successes_be(runc: Runc, fake: FakeRunc) -> None:
    """With --all a container that has stopped is no failure."""
    with pytest.raises(NotFoundError, match=r"^no such container: not found$"):
        runc.kill(9)
    create(runc)
    runc.kill(9)
    runc.kill(9, is_all=True)
    fake.says("kill", b"odd\n", status=7)
    with pytest.raises(EngineError) as caught:
        runc.kill(9)

    expected = "unknown error after kill: runc did not terminate successfully: exit status 7: odd"
    assert expected == str(caught.value)


def test_last_error_reads_from_an_offset_in_bytes(tmp_path: Path) -> None:
    """Messages may hold any text, and bytes that are none."""
    log = tmp_path / "log.json"
    first = '{"level":"error","msg":"gr\u00fc\u00dfe"}'.encode()
    log.write_bytes(first + b'{"level":"error","msg":"\xff second"}')

    assert "\ufffd second" == last_error(str(log), len(first)) == last_error(str(log))
    assert "" == last_error(str(log), log.stat().st_size)
    assert "" == last_error(str(log), 10_000)


def test_last_error_of_records_that_are_no_records(tmp_path: Path) -> None:
    """They are passed over, as are errors without a message."""
    log = tmp_path / "log.json"
    log.write_text('1 "x" [] {"level":"error","msg":"m"} {"level":"info","msg":"i"} null')

    assert "m" == last_error(str(log))


def test_the_fake_is_a_program(fake: FakeRunc) -> None:
    """What all of this rests on."""
    assert os.stat(fake.path).st_mode & stat.S_IXUSR
