"""Bytes that upstream's own descriptors produced, for a message of every kind a shim sends or receives.

The ttrpc envelope and its status are hand-written and have their own tests.
"""

import importlib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, message, message_factory, text_format

import shim.api

V2 = "containerd.task.v2."
V3 = "containerd.task.v3."

# Full name, text format, bytes in hexadecimal; fields in the order of their numbers.
VECTORS = [
    (
        "google.protobuf.Timestamp",
        "seconds: 1700000000 nanos: 123456789",
        "0880e2cfaa0610959aef3a",
    ),
    (
        "google.protobuf.Timestamp",
        "seconds: -62135596800",
        "088092b8c398feffffff01",
    ),
    (
        "google.protobuf.Any",
        r'type_url: "containerd.runc.v1.Options" value: "H\001"',
        "0a1a636f6e7461696e6572642e72756e632e76312e4f7074696f6e7312024801",
    ),
    (
        "containerd.types.Mount",
        'type: "bind" source: "/s" target: "/t" options: "rbind" options: "ro"',
        "0a0462696e6412022f731a022f7422057262696e642202726f",
    ),
    (
        "containerd.task.v2.CreateTaskRequest",
        'id: "c1" bundle: "/b" rootfs { type: "bind" source: "/s" } terminal: true stdin: "i" stdout: "o" '
        'stderr: "e" checkpoint: "k" parent_checkpoint: "p" options { type_url: "t" value: "v" }',
        "0a02633112022f621a0a0a0462696e6412022f7320012a016932016f3a016542016b4a017052060a0174120176",
    ),
    (
        "containerd.task.v2.CreateTaskResponse",
        "pid: 1234",
        "08d209",
    ),
    (
        "containerd.task.v2.ExecProcessRequest",
        'id: "c1" exec_id: "x" terminal: true stdin: "i" stdout: "o" stderr: "e" spec { type_url: "t" value: "{}" }',
        "0a02633112017818012201692a016f3201653a070a017412027b7d",
    ),
    (
        "containerd.task.v2.StateResponse",
        'id: "c1" bundle: "/b" pid: 7 status: RUNNING stdin: "i" stdout: "o" stderr: "e" terminal: true '
        'exit_status: 137 exited_at { seconds: 1 } exec_id: "x"',
        "0a02633112022f62180720022a016932016f3a01654001488901520208015a0178",
    ),
    (
        "containerd.task.v2.DeleteResponse",
        "pid: 7 exit_status: 137 exited_at { seconds: 1 nanos: 2 }",
        "08071089011a0408011002",
    ),
    (
        "containerd.task.v2.KillRequest",
        'id: "c1" exec_id: "x" signal: 9 all: true',
        "0a02633112017818092001",
    ),
    (
        "containerd.task.v2.ResizePtyRequest",
        'id: "c1" exec_id: "x" width: 80 height: 24',
        "0a02633112017818502018",
    ),
    (
        "containerd.task.v2.PidsResponse",
        r'processes { pid: 7 info { type_url: "containerd.runc.v1.ProcessDetails" value: "\n\001x" } }',
        "0a2c080712280a21636f6e7461696e6572642e72756e632e76312e50726f6365737344657461696c7312030a0178",
    ),
    (
        "containerd.task.v2.UpdateTaskRequest",
        'id: "c1" resources { type_url: "t" value: "{}" } annotations { key: "a" value: "b" }',
        "0a02633112070a017412027b7d1a060a0161120162",
    ),
    (
        "containerd.task.v2.ConnectResponse",
        'shim_pid: 5 task_pid: 7 version: ""',
        "08051007",
    ),
    (
        "containerd.task.v2.ShutdownRequest",
        'id: "c1" now: true',
        "0a0263311001",
    ),
    (
        "containerd.runc.v1.Options",
        'no_pivot_root: true no_new_keyring: true shim_cgroup: "/g" io_uid: 1 io_gid: 2 binary_name: "crun" '
        'root: "/r" systemd_cgroup: true criu_image_path: "i" criu_work_path: "w" task_api_address: "a" '
        "task_api_version: 3",
        "080110011a022f672001280232046372756e3a022f7248015201695a01776201616803",
    ),
    (
        "containerd.runc.v1.CheckpointOptions",
        "exit: true open_tcp: true external_unix_sockets: true terminal: true file_locks: true "
        'empty_namespaces: "network" cgroups_mode: "soft" image_path: "i" work_path: "w"',
        "0801100118012001280132076e6574776f726b3a04736f66744201694a0177",
    ),
    (
        "runtimeoptions.v1.Options",
        'type_url: "u" config_path: "p" config_body: "b"',
        "0a01751201701a0162",
    ),
    (
        "containerd.events.TaskCreate",
        'container_id: "c1" bundle: "/b" rootfs { type: "bind" } io { stdin: "i" stdout: "o" stderr: "e" '
        'terminal: true } checkpoint: "k" pid: 7',
        "0a02633112022f621a060a0462696e64220b0a016912016f1a016520012a016b3007",
    ),
    (
        "containerd.events.TaskExit",
        'container_id: "c1" id: "x" pid: 7 exit_status: 137 exited_at { seconds: 1 }',
        "0a02633112017818072089012a020801",
    ),
    (
        "containerd.events.TaskDelete",
        'container_id: "c1" pid: 7 exit_status: 137 exited_at { seconds: 1 } id: "x"',
        "0a0263311007188901220208012a0178",
    ),
    (
        "containerd.services.events.ttrpc.v1.ForwardRequest",
        'envelope { timestamp { seconds: 1 } namespace: "default" topic: "/tasks/oom" event { type_url: '
        r'"containerd.events.TaskOOM" value: "\n\002c1" } }',
        "0a3c0a020801120764656661756c741a0a2f7461736b732f6f6f6d22210a19636f6e7461696e6572642e6576656e74732e546173"
        "6b4f4f4d12040a026331",
    ),
    (
        "containerd.runtime.bootstrap.v1.BootstrapParams",
        'instance_id: "c1" namespace: "default" log_level: LOG_LEVEL_DEBUG containerd_version: "2.3.0" '
        'containerd_ttrpc_address: "/t" containerd_grpc_address: "/g" containerd_binary: "/c" extensions { '
        'value { type_url: "containerd.runc.v1.Options" } } socket_dir: "/run/s"',
        "0a026331120764656661756c7418fcffffffffffffffff012205322e332e302a022f7432022f673a022f63421e0a1c0a1a636f6e"
        "7461696e6572642e72756e632e76312e4f7074696f6e734a062f72756e2f73",
    ),
    (
        "containerd.runtime.bootstrap.v1.BootstrapResult",
        'version: 3 address: "unix:///s" protocol: "ttrpc" metadata { key: "k" value: "v" }',
        "08031209756e69783a2f2f2f731a0574747270632a060a016b120176",
    ),
    (
        "containerd.types.RuntimeInfo",
        'name: "io.containerd.runc.v2" version { version: "1" revision: "r" } options { type_url: "o" } '
        'features { type_url: "f" value: "{}" } annotations { key: "k" value: "v" }',
        "0a15696f2e636f6e7461696e6572642e72756e632e763212060a01311201721a030a016f22070a016612027b7d2a060a016b120176",
    ),
    (
        "containerd.runtime.sandbox.v1.SandboxStatusResponse",
        'sandbox_id: "s" pid: 7 state: "SANDBOX_READY" info { key: "k" value: "v" } created_at { seconds: 1 '
        '} exited_at { seconds: 2 } extra { type_url: "t" }',
        "0a017310071a0d53414e44424f585f524541445922060a016b1201762a020801320208023a030a0174",
    ),
    (
        "io.containerd.cgroups.v2.Metrics",
        "pids { current: 1 limit: 18446744073709551615 } cpu { usage_usec: 5 } memory { usage: 4096 } "
        "memory_events { oom_kill: 1 }",
        "0a0d080110ffffffffffffffffff011202080522048002802042022801",
    ),
    (
        "io.containerd.cgroups.v1.Metrics",
        "pids { current: 1 } cpu { usage { total: 5 per_cpu: 2 per_cpu: 3 } } memory { usage { usage: 4096 } "
        "} memory_oom_control { oom_kill: 1 }",
        "120208011a080a0608052202020322068a02031080204a021801",
    ),
]
VECTORS += [(name.replace(V2, V3), text, encoded) for name, text, encoded in VECTORS if name.startswith(V2)]
NAMES = [name for name, _text, _encoded in VECTORS]


def message_class(full_name: str) -> type[message.Message]:
    """Return the generated class of a message, wherever it was generated."""
    for path in Path(shim.api.__path__[0]).glob("*_pb2.py"):
        importlib.import_module(f"shim.api.{path.stem}")
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(full_name))


@pytest.mark.parametrize(("full_name", "text", "encoded"), VECTORS, ids=NAMES)
def test_message_encodes_to_golden_bytes(full_name: str, text: str, encoded: str) -> None:
    """A message made from text has exactly upstream's bytes."""
    built = text_format.Parse(text, message_class(full_name)())

    assert encoded == built.SerializeToString(deterministic=True).hex()


@pytest.mark.parametrize(("full_name", "text", "encoded"), VECTORS, ids=NAMES)
def test_golden_bytes_decode_to_message(full_name: str, text: str, encoded: str) -> None:
    """Upstream's bytes decode to the message, and encode to the same bytes again."""
    decoded = message_class(full_name).FromString(bytes.fromhex(encoded))

    assert text_format.Parse(text, message_class(full_name)()) == decoded
    assert encoded == decoded.SerializeToString(deterministic=True).hex()
