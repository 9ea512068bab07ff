"""Our protocol buffers are upstream's: packages, names, numbers, types, labels, values, methods.

Upstream's side is what Debian packages of containerd 1.6 and of its cgroups library ship; newer definitions are in
UNPACKAGED, read out of upstream's newer releases. Every definition of ours is held against one of the two.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

Definitions = dict[str, frozenset[str]]
Describe = Callable[[Iterable[FileDescriptorProto]], Definitions]

GO = Path("/usr/share/gocode/src")
GOGO = "github.com/gogo/protobuf"
CONTAINERD = "github.com/containerd/containerd"
CGROUPS = "github.com/containerd/cgroups"
PACKAGES = {
    "golang-github-containerd-containerd-dev": CONTAINERD,
    "golang-github-containerd-cgroups-dev": CGROUPS,
    "golang-github-gogo-protobuf-dev": GOGO,
}
# Two runs: the second imports gogo.proto under another name, and one run may not see its extensions twice.
FILES_SHORT_GOGO = (
    f"{CONTAINERD}/api/events/task.proto",
    f"{CONTAINERD}/api/services/ttrpc/events/v1/events.proto",
    f"{CONTAINERD}/api/types/descriptor.proto",
    f"{CONTAINERD}/api/types/metrics.proto",
    f"{CONTAINERD}/api/types/mount.proto",
    f"{CONTAINERD}/api/types/platform.proto",
    f"{CONTAINERD}/api/types/task/task.proto",
    f"{CONTAINERD}/runtime/linux/runctypes/runc.proto",
    f"{CONTAINERD}/runtime/v2/runc/options/oci.proto",
    f"{CONTAINERD}/runtime/v2/task/shim.proto",
    f"{CGROUPS}/stats/v1/metrics.proto",
    f"{CGROUPS}/v2/stats/metrics.proto",
)
FILES_LONG_GOGO = (f"{CONTAINERD}/pkg/runtimeoptions/v1/api.proto",)

# All that may differ from containerd 1.6: "+" ours alone, "-" upstream's alone, with the release that made it so.
DIFFERENCES = {
    "message containerd.runc.v1.CheckpointOptions": {"+ 10 parent_path string": "2.4"},
    "message containerd.runc.v1.Options": {
        "- 8 criu_path string": "1.7.25",
        "+ 12 task_api_address string": "1.7.25",
        "+ 13 task_api_version uint32": "1.7.25",
    },
    "message containerd.services.events.ttrpc.v1.Envelope": {"- whole": "1.7.25, moved to containerd.types"},
    "message containerd.services.events.ttrpc.v1.ForwardRequest": {
        "- 1 envelope containerd.services.events.ttrpc.v1.Envelope": "1.7.25",
        "+ 1 envelope containerd.types.Envelope": "1.7.25",
    },
    "message containerd.types.Descriptor": {"- whole": "no release: shims never meet content descriptors"},
    "message containerd.types.Platform": {
        "+ 4 os_version string": "1.7.25",
        "+ 5 os_features repeated string": "2.3",
    },
    "message runtimeoptions.v1.Options": {"+ 3 config_body bytes": "1.7"},
    "message io.containerd.cgroups.v2.CPUStat": {
        "+ 7 psi io.containerd.cgroups.v2.PSIStats": "2.0",
        "+ 8 nr_bursts uint64": "2.2",
        "+ 9 burst_usec uint64": "2.2",
    },
    "message io.containerd.cgroups.v2.HugeTlbStat": {"+ 4 failcnt uint64": "2.2"},
    "message io.containerd.cgroups.v2.IOStat": {"+ 2 psi io.containerd.cgroups.v2.PSIStats": "2.0"},
    "message io.containerd.cgroups.v2.MemoryEvents": {"+ 6 oom_group_kill uint64": "2.3"},
    "message io.containerd.cgroups.v2.MemoryStat": {
        "+ 36 max_usage uint64": "2.0",
        "+ 37 swap_max_usage uint64": "2.0",
        "+ 38 psi io.containerd.cgroups.v2.PSIStats": "2.0",
    },
    "message io.containerd.cgroups.v2.Metrics": {
        "+ 9 network repeated io.containerd.cgroups.v2.NetworkStat": "2.2",
    },
}

# What no Debian package has, but containerd.task.v3, which is task.v2 under another name. A leading dot stands for the
# package, Any and Timestamp for google.protobuf's.
UNPACKAGED = """
package containerd.types
message ActiveMount: 1 mount .Mount; 2 mounted_at Timestamp; 3 mount_point string; 4 data map<string, string>
message ActivationInfo: 1 name string; 2 active repeated .ActiveMount; 3 system repeated .Mount;
    4 labels map<string, string>
message Sandbox: 1 sandbox_id string; 2 runtime .Sandbox.Runtime; 3 spec Any; 4 labels map<string, string>;
    5 created_at Timestamp; 6 updated_at Timestamp; 7 extensions map<string, Any>; 10 sandboxer string
message Sandbox.Runtime: 1 name string; 2 options Any
message RuntimeRequest: 1 runtime_path string; 2 options Any
message RuntimeVersion: 1 version string; 2 revision string
message RuntimeInfo: 1 name string; 2 version .RuntimeVersion; 3 options Any; 4 features Any;
    5 annotations map<string, string>
package containerd.events
message SandboxCreate: 1 sandbox_id string
message SandboxStart: 1 sandbox_id string
message SandboxExit: 1 sandbox_id string; 2 exit_status uint32; 3 exited_at Timestamp
package containerd.runtime.bootstrap.v1
message BootstrapParams: 1 instance_id string; 2 namespace string; 3 log_level .LogLevel; 4 containerd_version string;
    5 containerd_ttrpc_address string; 6 containerd_grpc_address string; 7 containerd_binary string;
    8 extensions repeated .Extension; 9 socket_dir optional string
message Extension: 1 value Any
message BootstrapResult: 1 version int32; 2 address string; 3 protocol string; 4 capabilities repeated .Capability;
    5 metadata map<string, string>
enum LogLevel: 0 LOG_LEVEL_INFO; -8 LOG_LEVEL_TRACE; -4 LOG_LEVEL_DEBUG; 4 LOG_LEVEL_WARN; 8 LOG_LEVEL_ERROR;
    10 LOG_LEVEL_FATAL; 12 LOG_LEVEL_PANIC
enum Capability: 0 CAPABILITY_UNSPECIFIED
package containerd.runtime.sandbox.v1
service Sandbox: CreateSandbox .CreateSandboxRequest -> .CreateSandboxResponse;
    StartSandbox .StartSandboxRequest -> .StartSandboxResponse; Platform .PlatformRequest -> .PlatformResponse;
    StopSandbox .StopSandboxRequest -> .StopSandboxResponse; WaitSandbox .WaitSandboxRequest -> .WaitSandboxResponse;
    SandboxStatus .SandboxStatusRequest -> .SandboxStatusResponse; PingSandbox .PingRequest -> .PingResponse;
    ShutdownSandbox .ShutdownSandboxRequest -> .ShutdownSandboxResponse;
    SandboxMetrics .SandboxMetricsRequest -> .SandboxMetricsResponse
message CreateSandboxRequest: 1 sandbox_id string; 2 bundle_path string; 3 rootfs repeated containerd.types.Mount;
    4 options Any; 5 netns_path string; 6 annotations map<string, string>
message CreateSandboxResponse:
message StartSandboxRequest: 1 sandbox_id string
message StartSandboxResponse: 1 pid uint32; 2 created_at Timestamp; 3 spec Any
message PlatformRequest: 1 sandbox_id string
message PlatformResponse: 1 platform containerd.types.Platform
message StopSandboxRequest: 1 sandbox_id string; 2 timeout_secs uint32
message StopSandboxResponse:
message UpdateSandboxRequest: 1 sandbox_id string; 2 resources Any; 3 annotations map<string, string>
message WaitSandboxRequest: 1 sandbox_id string
message WaitSandboxResponse: 1 exit_status uint32; 2 exited_at Timestamp
message UpdateSandboxResponse:
message SandboxStatusRequest: 1 sandbox_id string; 2 verbose bool
message SandboxStatusResponse: 1 sandbox_id string; 2 pid uint32; 3 state string; 4 info map<string, string>;
    5 created_at Timestamp; 6 exited_at Timestamp; 7 extra Any
message PingRequest: 1 sandbox_id string
message PingResponse:
message ShutdownSandboxRequest: 1 sandbox_id string
message ShutdownSandboxResponse:
message SandboxMetricsRequest: 1 sandbox_id string
message SandboxMetricsResponse: 1 metrics containerd.types.Metric
package containerd.services.streaming.v1
service Streaming: Stream stream Any -> stream Any
message StreamInit: 1 id string
package containerd.types.transfer
message Data: 1 data bytes
message WindowUpdate: 1 update int32
message ReadStream: 1 stream string; 2 media_type string
message WriteStream: 1 stream string; 2 media_type string
package io.containerd.cgroups.v2
message PSIData: 1 avg10 double; 2 avg60 double; 3 avg300 double; 4 total uint64
message PSIStats: 1 some .PSIData; 2 full .PSIData
message NetworkStat: 1 name string; 2 rx_bytes uint64; 3 rx_packets uint64; 4 rx_errors uint64; 5 rx_dropped uint64;
    6 tx_bytes uint64; 7 tx_packets uint64; 8 tx_errors uint64; 9 tx_dropped uint64
"""


def read_table(table: str) -> Definitions:
    """Return the definitions that the lines of UNPACKAGED stand for."""
    definitions: Definitions = {}
    package = ""
    for line in re.sub(r"\n +", " ", table).strip().splitlines():
        kind, name, *_ = re.split(r"[ :]+", line)
        if kind == "package":
            package = name
            continue
        text = re.sub(r"(?<![\w.])\.(?=[A-Z])", f"{package}.", line.partition(":")[2])
        text = re.sub(r"(?<![\w.])(?=(Any|Timestamp)\b)", "google.protobuf.", text)
        definitions[f"{kind} {package}.{name}"] = frozenset(part.strip() for part in text.split(";") if part.strip())
    return definitions


def compile_upstream(includes: list[Path], files: tuple[str, ...], output: Path) -> list[FileDescriptorProto]:
    """Return the descriptors of the files, without those of their imports."""
    protoc = importlib.import_module("grpc_tools.protoc")
    arguments = [*(f"-I{folder}" for folder in includes), f"--descriptor_set_out={output}", *files]
    assert protoc.main(["protoc", *arguments]) == 0
    return list(FileDescriptorSet.FromString(output.read_bytes()).file)


@pytest.fixture(scope="module")
def upstream(describe: Describe, tmp_path_factory: pytest.TempPathFactory) -> Definitions:
    """Return what containerd 1.6 defines; a machine without the Debian packages fails, for nothing would be proved."""
    if missing := [package for package, folder in PACKAGES.items() if not (GO / folder).is_dir()]:
        pytest.fail(f"upstream's .proto files are missing: apt-get install --no-install-recommends {' '.join(missing)}")
    out = tmp_path_factory.mktemp("upstream")
    well_known = GO / GOGO / "protobuf"
    short_gogo = compile_upstream([GO, GO / GOGO, well_known], FILES_SHORT_GOGO, out / "short")
    long_gogo = compile_upstream([GO, well_known], FILES_LONG_GOGO, out / "long")
    return describe(short_gogo + long_gogo)


def changes(theirs: frozenset[str], mine: frozenset[str] | None) -> set[str]:
    """Return the lines that only one side has, in the words of DIFFERENCES."""
    if mine is None:
        return {"- whole"}
    return {f"- {line}" for line in theirs - mine} | {f"+ {line}" for line in mine - theirs}


def test_definitions_differ_from_upstream_by_release_alone(ours: Definitions, upstream: Definitions) -> None:
    """Whatever containerd 1.6 defines, we define alike, but for the listed changes of later releases."""
    found = {name: changes(lines, ours.get(name)) for name, lines in upstream.items()}

    expected = {name: set(rows) for name, rows in DIFFERENCES.items()}
    assert expected == {name: lines for name, lines in found.items() if lines}


def test_envelope_kept_its_fields_when_it_moved(ours: Definitions, upstream: Definitions) -> None:
    """The event envelope's bytes are the same in the old package and in the new one."""
    old = upstream["message containerd.services.events.ttrpc.v1.Envelope"]

    assert old == ours["message containerd.types.Envelope"]


def test_definitions_without_package_match_the_table(ours: Definitions) -> None:
    """What containerd defined after 1.6 is as its newer releases have it."""
    expected = read_table(UNPACKAGED)

    assert expected == {name: ours.get(name) for name in expected}


def test_task_v3_is_task_v2_under_another_name(ours: Definitions) -> None:
    """Version 3 of the Task service has version 2's messages and methods."""
    v2, v3 = (
        {name: lines for name, lines in ours.items() if f" containerd.task.{version}." in name}
        for version in ("v2", "v3")
    )
    renamed = {
        name.replace(".v2.", ".v3."): frozenset(
            line.replace("containerd.task.v2.", "containerd.task.v3.") for line in lines
        )
        for name, lines in v2.items()
    }

    assert len(v2) == 27
    assert renamed == v3


def test_every_definition_is_held_against_something(ours: Definitions, upstream: Definitions) -> None:
    """No message, enum or service of ours escapes the comparisons above."""
    gone = {name for name, rows in DIFFERENCES.items() if "- whole" in rows}
    task_v3 = {name for name in ours if " containerd.task.v3." in name}
    moved = {"message containerd.types.Envelope"}

    assert (upstream.keys() - gone) | read_table(UNPACKAGED).keys() | task_v3 | moved == ours.keys()
