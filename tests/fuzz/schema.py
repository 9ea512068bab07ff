"""ttrpc's envelopes as protobuf's own code reads them: the yardstick for ours.

Built at import from the facts of containerd/ttrpc's request.proto, in a pool of its own.
"""

from typing import Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_TEXT, _DATA, _MESSAGE = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE
_ONE, _MANY = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED
_FIELDS: Final = {
    "KeyValue": [("key", 1, _TEXT, _ONE, ""), ("value", 2, _TEXT, _ONE, "")],
    "Any": [("type_url", 1, _TEXT, _ONE, ""), ("value", 2, _DATA, _ONE, "")],
    "Status": [
        ("code", 1, Field.TYPE_INT32, _ONE, ""),
        ("message", 2, _TEXT, _ONE, ""),
        ("details", 3, _MESSAGE, _MANY, ".ttrpc.Any"),
    ],
    "Request": [
        ("service", 1, _TEXT, _ONE, ""),
        ("method", 2, _TEXT, _ONE, ""),
        ("payload", 3, _DATA, _ONE, ""),
        ("timeout_nano", 4, Field.TYPE_INT64, _ONE, ""),
        ("metadata", 5, _MESSAGE, _MANY, ".ttrpc.KeyValue"),
    ],
    "Response": [("status", 1, _MESSAGE, _ONE, ".ttrpc.Status"), ("payload", 2, _DATA, _ONE, "")],
}


def _build() -> tuple[type[Message], type[Message]]:
    file = FileDescriptorProto(name="request.proto", package="ttrpc", syntax="proto3")
    for message, fields in _FIELDS.items():
        built = file.message_type.add(name=message)
        for name, tag, kind, label, type_name in fields:
            built.field.add(name=name, number=tag, type=kind, label=label, type_name=type_name or None)
    pool = DescriptorPool()
    pool.Add(file)
    request, response = (GetMessageClass(pool.FindMessageTypeByName(f"ttrpc.{n}")) for n in ("Request", "Response"))
    return request, response


PbRequest, PbResponse = _build()
