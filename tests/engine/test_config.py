"""The configuration file: what may stand in it, what it changes, and what happens without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import task_v3_pb2
from shim.api.runc_options_pb2 import Options
from shim.engine import shim as engine_shim
from shim.engine.__main__ import RUNTIME_ID
from shim.engine.bundle import Bundle
from shim.engine.config import DEFAULT_CONFIG, Config, read_config
from shim.engine.info import runtime_info
from shim.engine.limits import DEFAULT_LIMITS, Limits
from shim.engine.shim import RuncShim
from shim.errors import InvalidArgumentError, NotFoundError
from shim.runtime.config import Config as Switches
from shim.runtime.flags import Flags
from shim.runtime.start import StartOpts
from tests.engine.caller import Caller
from tests.fakes import LoopThread, python_path

FLAGS = Flags(namespace="ns", id="c1")


def pyrunc_shim() -> RuncShim:
    """Return pyrunc, as `start` makes it."""
    return RuncShim(RUNTIME_ID, FLAGS, Switches())


def start_of_c1() -> StartOpts:
    """Return what a start in this folder asks."""
    return StartOpts(id="c1", namespace="ns", bundle=os.getcwd())


FULL = """
grouping = "namespace"
binary_name = "crun"
root = "/r"
[limits]
create = 7
ps = 0.5
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file's path, which the environment names; the working directory is the bundle of a pod's."""
    path = tmp_path / "shim.toml"
    monkeypatch.setenv("CONTAINERD_SHIM_CONFIG", str(path))
    bundle = tmp_path / "c1"
    bundle.mkdir()
    (bundle / "config.json").write_text('{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}')
    monkeypatch.chdir(bundle)
    return path


def test_a_file_may_set_everything(file: Path) -> None:
    """What it leaves out keeps its default."""
    file.write_text(FULL)

    assert Config("namespace", "crun", "/r", DEFAULT_LIMITS._replace(create=7.0, ps=0.5)) == read_config(str(file))
    file.write_text("")
    assert DEFAULT_CONFIG == read_config(str(file)) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("groupng = 'pod'", "unknown key groupng; there are grouping, binary_name, root, limits"),
        ("grouping = 'pods'", "grouping wants one of pod, namespace, container, has 'pods'"),
        ("grouping = true", "grouping wants a string, has True"),
        ("root = 7", "root wants a string, has 7"),
        ("limits = 7", "limits wants a table, has 7"),
        ("[root]\nx = 1", "root wants a string, has {'x': 1}"),
        ("[limits]\nrun = 1", f"unknown key limits.run; there are {', '.join(Limits._fields)}"),
        ("[limits]\nps = '1'", "limits.ps wants seconds, a number above 0, has '1'"),
        ("[limits]\nps = true", "limits.ps wants seconds, a number above 0, has True"),
        ("[limits]\nps = 0", "limits.ps wants seconds, a number above 0, has 0"),
        ("[limits]\nps = nan", "limits.ps wants seconds, a number above 0, has nan"),
        ("[limits]\nps = inf", "limits.ps wants seconds, a number above 0, has inf"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_file(file: Path, text: str, expected: str) -> None:
    """A typing mistake must not pass for a setting."""
    file.write_text(text)
    with pytest.raises(InvalidArgumentError) as caught:
        read_config(str(file))

    assert f"{file}: {expected}" == str(caught.value)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    """When the environment names it, it has to be there; and what is there has to be TOML."""
    with pytest.raises(InvalidArgumentError, match=rf"^open {file}: no such file or directory$"):
        pyrunc_shim().configuration()
    for garbage in (b"=", b"\xff"):
        file.write_bytes(garbage)
        with pytest.raises(InvalidArgumentError, match=rf"^parse {file}: "):
            pyrunc_shim().configuration()


def test_without_a_file_nothing_is_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when there is none in its place, nor when the environment says that there is none."""
    monkeypatch.setattr(engine_shim, "CONFIG_FILE", str(file))
    monkeypatch.delenv("CONTAINERD_SHIM_CONFIG")
    told = [pyrunc_shim().configuration()]
    file.write_text("binary_name = 'x'")
    monkeypatch.setenv("CONTAINERD_SHIM_CONFIG", "")
    told.append(pyrunc_shim().configuration())
    monkeypatch.delenv("CONTAINERD_SHIM_CONFIG")
    found = pyrunc_shim().configuration()
    program = (
        "import os, sys; from shim.engine.shim import RuncShim; from shim.runtime.start import StartOpts;"
        "from shim.runtime.config import Config; from shim.runtime.flags import Flags;"
        "opts = StartOpts(id='c1', namespace='ns', bundle=os.getcwd());"
        "told = RuncShim('x', Flags(id='c1'), Config()).group(opts);"
        "print(told, *{'tomllib', 'shim.engine.config'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": python_path(), "CONTAINERD_SHIM_CONFIG": ""}
    child = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True)

    assert [None, None] == told
    assert Config(binary_name="x") == found
    assert b"pod\n" == child.stdout


@pytest.mark.parametrize(("grouping", "expected"), [("pod", "pod"), ("container", "c1"), ("namespace", "/")])
def test_grouping_decides_whose_daemon_serves(file: Path, grouping: str, expected: str) -> None:
    """A namespace's has a name that no container can have; the file is read once."""
    file.write_text(f"grouping = '{grouping}'")
    shim = pyrunc_shim()
    first = shim.group(start_of_c1())
    file.unlink()

    assert [expected] * 2 == [first, shim.group(start_of_c1())]


def test_a_container_of_the_namespaces_daemon_needs_no_spec_at_start(file: Path) -> None:
    """Its bundle is of no interest then."""
    file.write_text("grouping = 'namespace'")
    Path("config.json").unlink()

    assert "/" == pyrunc_shim().group(start_of_c1())


@pytest.mark.parametrize(
    ("options", "expected"),
    [(Options(), ("crun", "/r")), (Options(binary_name="youki", root="/o"), ("youki", "/o"))],
)
def test_a_containers_own_options_come_before_the_file(
    tmp_path: Path, thread: LoopThread, options: Options, expected: tuple[str, str]
) -> None:
    """What counts is left in the bundle, for `delete`."""
    caller = Caller(tmp_path, thread, task_v3_pb2, Config("pod", "crun", "/r", DEFAULT_LIMITS._replace(ps=7.0)))
    caller.create(options=AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString()))
    runc = caller.engine.containers.get("c1").runc
    left = json.loads((tmp_path / "c1" / "options.json").read_text())

    assert expected == (runc.binary, runc.root)
    assert expected == (left["binary_name"], left["root"])
    assert expected[0] == Bundle(str(tmp_path / "c1")).read_runtime()
    assert 7.0 == runc.limits.ps


def test_info_asks_the_configured_runtime() -> None:
    """Unless the options name another."""
    with pytest.raises(NotFoundError, match='"no-such-runtime"'):
        runtime_info(RUNTIME_ID, None, Config(binary_name="no-such-runtime"))
