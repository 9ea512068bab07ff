"""pyrunc's short actions: grouping, cleaning up after a dead daemon, and telling what it can."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import __version__
from shim.api.runc_options_pb2 import Options
from shim.engine.__main__ import RUNTIME_ID, pyrunc
from shim.engine.bundle import Bundle
from shim.engine.call import ChildFds
from shim.engine.info import FEATURES_TYPE, runtime_info
from shim.engine.runc import Runc
from shim.errors import BundleError, NotFoundError
from shim.host.process import find_by_arguments
from shim.runtime.config import Config
from shim.runtime.flags import Flags
from shim.runtime.reaper import ForegroundReaper
from shim.runtime.shim import Deleted
from shim.runtime.start import StartOpts
from shim.testing import FakeRunc
from shim.testing.runc_state import mark
from tests.fakes import PATIENCE_S, wait_until

FLAGS = Flags(namespace="ns", id="c1")
SHIM = pyrunc(RUNTIME_ID, FLAGS, Config())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunc]:
    """A runc on PATH."""
    with FakeRunc(tmp_path / "bin") as fake:
        monkeypatch.setenv("PATH", fake.search_path)
        yield fake


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle that the action runs in; its state folder is below the test's own."""
    path = tmp_path / "ns" / "c1"
    path.mkdir(parents=True)
    monkeypatch.chdir(path)
    return Bundle(str(path))


@pytest.fixture
def left(bundle: Bundle, fake: FakeRunc, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A container that runs and whose daemon is gone; its init is given."""
    root = tmp_path / "root"
    bundle.write_options({"root": str(root)}, "runc")
    Path(bundle.file("config.json")).write_text("{}")
    Runc(ForegroundReaper(), "c1", bundle.path, "ns", root=str(root)).create(bundle.file("init.pid"), ChildFds(), None)
    fake.forget()
    init = subprocess.Popen(["sleep", "60"])  # stands for it, since a test cannot reap what it did not start
    fake.close()
    (root / "ns" / "c1" / "init").write_text(mark(init.pid))
    (root / "ns" / "c1" / "exec.fifo").unlink()
    yield init
    init.kill()
    init.wait()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("{}", "c1"), ('{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}', "pod")],
)
def test_group_is_the_bundles(bundle: Bundle, spec: str, expected: str) -> None:
    """The working directory's config.json decides."""
    Path(bundle.file("config.json")).write_text(spec)

    assert expected == SHIM.group(StartOpts(id="c1", namespace="ns", bundle=os.getcwd()))


def test_group_needs_a_spec(bundle: Bundle) -> None:
    """A start without one fails, and says why."""
    with pytest.raises(BundleError, match=r"config\.json: No such file or directory"):
        SHIM.group(StartOpts(id="c1", namespace="ns", bundle=os.getcwd()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, ""),
        (AnyMessage(type_url="containerd.runc.v1.Options", value=Options(shim_cgroup="/x").SerializeToString()), "/x"),
        (AnyMessage(type_url="of.somebody.Else"), ""),
        (AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff"), ""),
    ],
)
def test_shim_cgroup_is_an_option(options: Any, expected: str) -> None:
    """Options that cannot be read are Create's to refuse, with a code that clients understand."""
    assert expected == SHIM.shim_cgroup(options)


def test_delete_of_nothing_succeeds_in_silence(
    bundle: Bundle, fake: FakeRunc, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after every container that ended in good order; no runtime is run."""
    deleted = SHIM.delete_shim()

    assert Deleted(0, 137) == deleted
    assert [] == fake.words()
    assert ("", "") == capfd.readouterr()


def test_delete_kills_what_is_left(
    bundle: Bundle,
    fake: FakeRunc,
    left: subprocess.Popen[bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By the files alone; a second one finds nothing to do."""
    pid = bundle.read_pid()
    first = SHIM.delete_shim()
    second = SHIM.delete_shim()

    assert -signal.SIGKILL == left.wait(PATIENCE_S)
    assert [Deleted(pid)] * 2 == [first, second]
    expected = ["--root", f"{tmp_path}/root/ns", "--log", bundle.file("log.json"), "--log-format", "json"]
    assert [[*expected, "delete", "--force", "c1"]] == fake.words()
    assert ("", "") == capfd.readouterr()


def test_delete_of_a_sandbox_takes_its_containers_along(
    bundle: Bundle, fake: FakeRunc, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those that the runtime still knows, whose bundles may be gone; for them containerd runs no `delete`."""
    root = str(tmp_path / "root")
    bundle.write_options({"root": root}, "runc")
    bundle.write_containers(dict.fromkeys(("mine", "gone"), ("", root)))
    for name in ("c1", "mine", "another"):
        (tmp_path / "root" / "ns" / name).mkdir(parents=True)  # what the runtime knows
    Path(bundle.file("init.pid")).write_text("4194304")
    deleted = SHIM.delete_shim()

    assert Deleted(4194304) == deleted
    assert [["delete", "--force", "mine"], ["delete", "--force", "c1"]] == [words[-3:] for words in fake.words()]
    assert ("", "") == capfd.readouterr()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"c": "x"}', '{"c": [1]}', '{"c": 5}'])
def test_delete_does_not_stumble_over_a_garbled_list(bundle: Bundle, fake: FakeRunc, text: str) -> None:
    """What cannot be read names no containers."""
    Path(bundle.file("containers.json")).write_text(text)

    assert Deleted(0) == SHIM.delete_shim()
    assert [] == fake.words()


@pytest.mark.parametrize("trouble", ["fails", "missing", "garbled"])
def test_delete_warns_and_succeeds_whatever_is_wrong(
    bundle: Bundle,
    fake: FakeRunc,
    left: subprocess.Popen[bytes],
    trouble: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """containerd removes the bundle next; there is nobody else to tell."""
    if trouble == "fails":
        fake.fails("delete", "device busy")
    elif trouble == "missing":
        Path(bundle.file("runtime")).write_text("no-such-runc")
    else:
        Path(bundle.file("options.json")).write_text("{")
        Path(bundle.file("init.pid")).write_bytes(b"\xff")
        monkeypatch.setattr("shim.engine.state.DEFAULT_ROOT", "/nonexistent")
    deleted = SHIM.delete_shim()
    said = capfd.readouterr()

    assert 137 == deleted.exit_status
    assert "" == said.out
    texts = {"fails": "failed to delete task: device busy", "missing": "executable file not found", "garbled": ""}
    assert texts[trouble] in said.err
    assert (trouble == "garbled") is (said.err == "")
    assert said.err == "" or said.err.startswith('time="')


@pytest.mark.parametrize(
    ("script", "patience_s", "expected"), [("kill -STOP $$", 0.1, -signal.SIGKILL), ("sleep 0.1; exit 7", 10.0, 7)]
)
def test_delete_lets_no_create_outlive_its_daemon(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, patience_s: float, expected: int
) -> None:
    """It would make a container that nobody would know: it is waited for, but not for ever."""
    monkeypatch.setattr("shim.engine.shim._CREATE_END_S", patience_s)
    bundle.write_options({"root": str(tmp_path / "root")}, "")
    words = ["runc", "create", "--bundle", bundle.path, "--pid-file", bundle.file("init.pid"), "c1"]
    with subprocess.Popen(["sh", "-c", f"{script}; :", *words]) as creating:
        assert wait_until(lambda: find_by_arguments(*words))  # it has no arguments in the first moment of its life
        deleted = SHIM.delete_shim()

        assert expected == creating.wait(PATIENCE_S)
    assert Deleted(0) == deleted


def test_info_tells_what_the_runtime_tells(fake: FakeRunc) -> None:
    """Name, version, the options as they came, and its features."""
    fake.says("features", b'{"mountOptions":["rro"]}\n')
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=Options(root="/r").SerializeToString())
    info = runtime_info(RUNTIME_ID, options)

    assert (RUNTIME_ID, __version__, options) == (info.name, info.version.version, info.options)
    assert (FEATURES_TYPE, b'{"mountOptions":["rro"]}\n') == (info.features.type_url, info.features.value)
    assert [["features"]] == fake.words()


def test_info_without_options_has_none(fake: FakeRunc) -> None:
    """Nor does it make any up."""
    assert not runtime_info(RUNTIME_ID, None).HasField("options")
    assert not runtime_info(RUNTIME_ID, AnyMessage()).HasField("options")


@pytest.mark.parametrize(("output", "status"), [(b"", 1), (b"no json\n", 0), (b"", 0), (b"[]\n", 0)])
def test_info_leaves_out_features_that_are_none(fake: FakeRunc, output: bytes, status: int) -> None:
    """An old runtime has no such command."""
    fake.says("features", output, status=status)

    assert not runtime_info(RUNTIME_ID, None).HasField("features")


def test_info_answers_whatever_options_come(fake: FakeRunc) -> None:
    """Those of another shim too."""
    info = runtime_info(RUNTIME_ID, AnyMessage(type_url="of.somebody.Else", value=b"\xff"))

    assert ("of.somebody.Else", True) == (info.options.type_url, info.HasField("features"))


def test_info_of_a_missing_runtime_is_an_error(fake: FakeRunc) -> None:
    """containerd shows it to who configured it."""
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=Options(binary_name="nope").SerializeToString())
    with pytest.raises(NotFoundError) as caught:
        runtime_info(RUNTIME_ID, options)

    assert 'failed to look up the path of "nope": executable file not found in $PATH' == str(caught.value)
