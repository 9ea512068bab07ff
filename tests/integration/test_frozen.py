"""The binaries in dist/, in each form: what is in them, what each action answers, and that nothing outlives them.

By hand, without containerd; what starts a daemon runs in both ways of becoming one (fork and re-exec).  The static form
is what an image starts as that has not been made: all the same must work.  Only a onefile may have to unpack itself;
continuous integration runs these tests with one that does, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass

from shim import __version__, ttrpc
from shim.api import runc_options_pb2, task_v2_pb2, task_v3_pb2, types_pb2
from shim.runtime.daemon import UNPACK_MARKER
from shim.ttrpc import Code, Rpc, RpcError
from tests.integration.archive import code, contents, is_static, needed, unpacks
from tests.integration.byhand import RUNTIME_ID, Hand, finish, wait_gone
from tests.integration.client import descriptors
from tests.integration.conftest import BINARIES, PROJECT, SHIM, find_binary, kinds, wait_until

MAX_BYTES: Final = 17_500_000
ROOMS: Final = ("engine", "host", "runtime", "ttrpc")
# Never loaded by a daemon: they are for who asks, or for the build, and __main__ is the binary's own script.
NOT_FROZEN: Final = {"shim.engine.__main__", "shim.ttrpc.sync"}
# The static forms have a module of their own for it.
BUILT_IN: Final = {"shim.host.libc_ctypes"}
# asyncio's, a log driver's, logging's, OpenTelemetry's and the plugin's, and all that begins so
NEVER_FROZEN: Final = (
    "shim.runtime.aio",
    "shim.runtime.log_driver",
    "shim.runtime.log_handler",
    "shim.runtime.otel",
    "shim.ttrpc.aio",
    "shim.ttrpc.codegen",
)
# The parts of libc and the loader, which every glibc system has.
LIBC: Final = re.compile(r"(libc|libm|libdl|libpthread|librt|libutil)\.so\.\d+|ld-linux.*")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each form, or with those that --shim names."""
    if "binary" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--shim")
        forms = [kind for kind in kinds(metafunc) if kind in BINARIES] if asked else list(BINARIES)
        metafunc.parametrize("binary", forms, indirect=True, scope="session")


@pytest.fixture(scope="session")
def binary(request: pytest.FixtureRequest) -> Path:
    """Return the binary under test."""
    return find_binary(BINARIES[request.param])


def archived(binary: Path) -> Path:
    """Return the binary whose archive can be read: an image has the modules of the static form that it is made of."""
    return BINARIES["static"] if binary == BINARIES["image"] else binary


def has_everything_inside(binary: Path) -> bool:
    """Say whether it is one of the two static forms."""
    return binary != BINARIES["onefile"]


@pytest.fixture(params=["fork", "reexec"])
def hand(binary: Path, request: pytest.FixtureRequest) -> Iterator[Hand]:
    """Return a hand to run the binary with; in the end nothing may be left of what it started or unpacked."""
    hand = Hand(binary, request.param)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


@pytest.fixture
def plain(binary: Path) -> Iterator[Hand]:
    """Return a hand for actions that leave no daemon."""
    hand = Hand(binary)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


# What is in it.


def test_binary_is_small(binary: Path) -> None:
    """What a launch touches is read from it, and each node has a copy."""
    assert binary.stat().st_size <= MAX_BYTES


def test_binary_has_every_module_of_a_shim(binary: Path) -> None:
    """Whatever a room imports late, or by name, is there, although nobody saw it import that."""
    _, modules = contents(archived(binary))
    files = [path for room in ROOMS for path in (PROJECT / "shim" / room).rglob("*.py")]
    names = {".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in files}

    wanted = {name.removesuffix(".__init__") for name in names if not name.startswith(NEVER_FROZEN)}
    wanted -= BUILT_IN if has_everything_inside(binary) else set()

    assert set() == wanted - NOT_FROZEN - modules
    assert [] == [name for name in modules if name.startswith(NEVER_FROZEN)]


def test_binary_needs_nothing_but_libc(binary: Path) -> None:
    """Nor even that, when it is static; a onefile's own libraries name no other that is not in it."""
    files, _ = contents(archived(binary))
    files["itself"] = binary.read_bytes()
    programs = {name: data for name, data in files.items() if data.startswith(b"\x7fELF")}

    assert has_everything_inside(binary) == is_static(files["itself"])
    if has_everything_inside(binary):
        assert ["itself"] == list(programs)
        return
    libraries = {name: needed(data) for name, data in programs.items()}
    there = {Path(name).name for name in files}
    missing = {name: [each for each in names if each not in there] for name, names in libraries.items()}

    assert {} == {name: names for name, each in missing.items() if (names := [n for n in each if not LIBC.match(n)])}


def test_static_binary_has_no_ctypes(binary: Path) -> None:
    """What it asks libc for is compiled in, and it can load no library."""
    _, modules = contents(archived(binary))
    names = {name.partition(".")[0] for name in modules}

    assert has_everything_inside(binary) != bool(names & {"ctypes", "_ctypes"})
    assert (b"PyInit__ctypes" in binary.read_bytes()) <= (not has_everything_inside(binary))


def test_static_binary_tells_nothing_of_the_machine_that_built_it(binary: Path) -> None:
    """No folder, no host and no user: another machine's binary is the same."""
    if not has_everything_inside(binary):
        return
    words = [
        str(PROJECT),
        str(Path.home()) + "/",
        os.uname().nodename,
        sys.base_prefix,
        str(Path(sys.executable).parent),
    ]
    parts = {"itself": binary.read_bytes(), **code(archived(binary))}
    found = [(name, word) for name, data in parts.items() for word in words if len(word) > 3 and word.encode() in data]

    assert [] == found


# Actions that leave no daemon.


def test_version_is_five_lines(plain: Hand) -> None:
    """Scripts read them; the revision may be unknown."""
    done = plain.run("-v")
    lines = done.stdout.decode().split("\n")

    assert (0, b"") == (done.returncode, done.stderr)
    assert [f"{SHIM}:", f"  Version:  {__version__}"] == lines[:2]
    assert re.fullmatch(r"  Revision: ([0-9a-f]{7,}(-dirty)?)?", lines[2])
    assert re.fullmatch(r"  Python version: 3\.\d+\.\d+", lines[3])
    assert ["", ""] == lines[4:]


def test_info_is_a_runtime_info(plain: Hand) -> None:
    """Without options on stdin it says who it is and what its OCI runtime can do."""
    done = plain.run("-info")
    info = types_pb2.RuntimeInfo.FromString(done.stdout)

    assert (0, b"") == (done.returncode, done.stderr)
    assert (RUNTIME_ID, __version__) == (info.name, info.version.version)
    assert not info.HasField("options")


def test_unknown_flag_is_refused_as_by_go(plain: Hand) -> None:
    """Exit code 2, the complaint and the usage on stderr, nothing on stdout."""
    done = plain.run("-nope")

    assert (2, b"") == (done.returncode, done.stdout)
    assert done.stderr.decode().startswith(f"flag provided but not defined: -nope\nUsage of {plain.program}:\n")


def test_delete_of_a_container_that_never_was(plain: Hand) -> None:
    """It was killed, as far as anybody can tell, and that is not worth a warning."""
    answer = plain.delete("c1")

    assert (0, 137) == (answer.pid, answer.exit_status)
    assert answer.exited_at.seconds > 0


@pytest.mark.parametrize("action", ["-v", "-info", "-nope", "delete", "start"])
def test_action_leaves_nothing_unpacked(plain: Hand, action: str) -> None:
    """The temporary folder is empty as soon as the process has ended, whether it succeeded or not."""
    bundle = plain.bundle("c1")
    if action == "start":
        (bundle / "config.json").write_text("{")
    done = plain.run(*(plain.arguments("c1", action) if action in ("delete", "start") else [action]), cwd=bundle)

    assert (action in ("-nope", "start")) == bool(done.returncode)
    assert [] == list(plain.tmp.iterdir())


def test_nothing_is_imported_from_the_working_directory(plain: Hand, tmp_path: Path) -> None:
    """Whatever is called there as modules are that the binary lacks, which protobuf looks for at each launch."""
    folder = tmp_path / "google/protobuf/internal"
    folder.mkdir(parents=True)
    for name in ("_api_implementation.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('not mine')")
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim/__init__.py").write_text("raise SystemExit('not mine')")
    done = plain.run("-info", cwd=tmp_path)

    assert (0, b"") == (done.returncode, done.stderr)
    assert types_pb2.RuntimeInfo.FromString(done.stdout).name == RUNTIME_ID


def test_nothing_unpacked_stays_when_it_is_killed(plain: Hand, binary: Path) -> None:
    """As containerd kills a `start` or `delete` that takes too long.

    Where that hits only the bootloader, the process that goes on cleans up.
    """
    process = plain.popen("-info")  # waits for its input
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if unpacks(binary):
        wait_until(lambda: bool(children.read_text()), "the bootloader has started the shim")
    else:
        wait_until(lambda: is_waiting(process.pid), "it waits for its input")
        assert ("", []) == (children.read_text(), list(plain.tmp.iterdir()))
    process.kill()
    process.communicate()  # only now the shim can read its input to the end

    wait_until(lambda: not list(plain.tmp.iterdir()), "the folder is gone")


def is_waiting(pid: int) -> bool:
    """Say whether a process has read what it can and sleeps."""
    system_call = Path(f"/proc/{pid}/wchan").read_text()
    return "pipe" in system_call


def test_unpacked_folder_has_our_marker(plain: Hand, binary: Path) -> None:
    """Sweeping the folders of killed processes goes by it, so that another program's folder is never touched."""
    is_marked = unpacks(binary)
    process = plain.popen("-info")  # waits for its input
    if is_marked:
        wait_until(lambda: list(plain.tmp.glob(f"_MEI*/{UNPACK_MARKER}")), "a folder with the marker")

    assert 0 == finish(process).returncode
    assert [] == list(plain.tmp.iterdir())


def test_text_is_utf8_whatever_the_locale(plain: Hand) -> None:
    """What systemd or an operator has set as locale changes no byte of a name."""
    name = "gr\u00fc\u00dfe\u2028"
    done = finish(plain.popen(f"-{name}", environment={"LC_ALL": "POSIX", "LANG": "de_DE.ISO-8859-1"}))

    assert f"flag provided but not defined: -{name}".encode() == done.stderr.split(b"\n", 1)[0]


# The daemon.


def call_everything(client: ttrpc.Client) -> dict[str, Code]:
    """Call every method of task v2 and v3 about a container that is not there, and return the codes.

    Not Shutdown, which ends the daemon, nor Create, which would make the container.
    """
    codes = {}
    for api in (task_v2_pb2, task_v3_pb2):
        service = api.DESCRIPTOR.services_by_name["Task"]
        for method in service.methods:
            if method.name in ("Create", "Shutdown"):
                continue
            request = GetMessageClass(method.input_type)(id="c1")
            try:
                rpc = Rpc(service.full_name, method.name, type(request), GetMessageClass(method.output_type))
                client.call(rpc, request, timeout_s=60)
                codes[f"{service.full_name}/{method.name}"] = Code.OK
            except RpcError as error:
                codes[f"{service.full_name}/{method.name}"] = Code(error.code)
    return codes


def expected_codes() -> dict[str, Code]:
    """Return what they must be: only Connect does not mind that there is no such container."""
    services = [api.DESCRIPTOR.services_by_name["Task"] for api in (task_v2_pb2, task_v3_pb2)]
    names = [f"{service.full_name}/{each.name}" for service in services for each in service.methods]
    called = [name for name in names if not name.endswith(("/Create", "/Shutdown"))]
    return {name: Code.OK if name.endswith("/Connect") else Code.NOT_FOUND for name in called}


def test_daemon_answers_everything_without_its_files(hand: Hand) -> None:
    """When `start` has ended and the daemon serves, nothing unpacked is there, and no method needs it."""
    client = hand.serve("c1")
    client.connect()
    wait_until(lambda: list(hand.tmp.iterdir()) == [], "TMPDIR is empty")

    with ttrpc.connect(client.address) as connection:
        assert expected_codes() == call_everything(connection)


def test_daemon_needs_no_file_for_its_extension_modules(hand: Hand, binary: Path) -> None:
    """What is not loaded when unpacked files go can never be; else they come from the binary, as Python modules do."""
    files, _ = contents(archived(binary))
    pid = hand.serve("c1").connect().shim_pid
    mapped = Path(f"/proc/{pid}/maps").read_text()
    names = [name for name in files if name.endswith(".so")]

    if unpacks(binary):
        assert [] == [name for name in names if f"/{name} (deleted)" not in mapped]
    elif has_everything_inside(binary):
        files_mapped = {line.split(maxsplit=5)[5] for line in mapped.splitlines() if "/" in line}
        zone = {name for name in files_mapped if "/zoneinfo/" in name or name == "/etc/localtime"}
        assert ({str(binary)}, []) == (files_mapped - zone, names)
    else:
        loaded = set(re.findall(r"/memfd:(\S+)", mapped))
        assert {"_ctypes", "_message", "_socket"} <= {name.partition(".")[0] for name in loaded}
        assert set() == loaded - {Path(name).name for name in files}


def test_daemon_survives_an_upgrade(hand: Hand, binary: Path, tmp_path: Path) -> None:
    """Another file in the binary's place changes nothing for daemons that run, whatever they import from now on."""
    hand.program = tmp_path / SHIM
    shutil.copy2(binary, hand.program)
    client = hand.serve("c1")
    client.connect()
    hand.program.unlink()
    hand.program.write_bytes(b"\0" * binary.stat().st_size)

    with ttrpc.connect(client.address) as connection:
        assert expected_codes() == call_everything(connection)


def test_daemon_runs_a_container(hand: Hand) -> None:
    """The whole life of one, with options, statistics and events, after the files are gone."""
    client = hand.serve("c1")
    client.connect()
    wait_until(lambda: list(hand.tmp.iterdir()) == [], "TMPDIR is empty")
    pid = client.create(hand.create_request("c1"))

    assert pid == client.start()
    assert pid == client.state().pid
    stats = client.call("Stats", task_v2_pb2.StatsRequest(id="c1"), task_v2_pb2.StatsResponse)
    assert stats.stats.type_url.startswith("io.containerd.cgroups.")
    assert 0 == client.run("e1", "/bin/true")
    client.kill(signal.SIGKILL)
    assert 137 == client.wait().exit_status
    assert (pid, 137) == ((deleted := client.delete()).pid, deleted.exit_status)
    wait_until(lambda: "/tasks/delete" in hand.events.topics("c1"), "the last event")


def test_daemon_holds_nothing_of_start(hand: Hand) -> None:
    """containerd reads start's output to its end, which comes only when nobody has it open."""
    process = hand.popen_start("c1")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {f"pipe:[{os.fstat(pipe.fileno()).st_ino}]" for pipe in (process.stdin, process.stdout, process.stderr)}
    finish(process)
    opened = descriptors(hand.client("c1").connect().shim_pid)

    assert set() == pipes & set(opened)
    assert [] == [target for target in opened if "_MEI" in target]


def test_daemon_shows_its_flags(hand: Hand) -> None:
    """Operators find it in `ps` by namespace and id; it is not another `start`."""
    pid = hand.serve("c1").connect().shim_pid
    shown = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")

    assert [b"-namespace", hand.namespace.encode(), b"-id", b"c1", b"-address"] == shown[1:6]
    assert b"start" not in shown


@pytest.mark.parametrize("end", ["shutdown", "sigkill"])
def test_daemon_leaves_nothing_unpacked(hand: Hand, end: str) -> None:
    """However it ends: what could be left is gone since it began to serve."""
    client = hand.serve("c1")
    pid = client.connect().shim_pid
    if end == "shutdown":
        client.call("Shutdown", task_v2_pb2.ShutdownRequest(id="c1"), Empty)
    else:
        os.kill(pid, signal.SIGKILL)
        hand.socket_path("c1").unlink()  # as the next `start` would
    wait_gone(pid)

    wait_until(lambda: list(hand.tmp.iterdir()) == [], "TMPDIR is empty")


def test_options_are_understood(hand: Hand) -> None:
    """Runtime options on start's stdin are decoded with what the binary brings."""
    options = runc_options_pb2.Options(no_new_keyring=True).SerializeToString()
    any_message = b"\x0a\x1acontainerd.runc.v1.Options\x12" + bytes([len(options)]) + options
    done = hand.start("c1", any_message)

    assert (0, f"unix://{hand.socket_path('c1')}".encode(), b"") == (done.returncode, done.stdout, done.stderr)
