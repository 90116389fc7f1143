"""The messages of the Container Storage Interface (CSI 1.x) that a node plugin has to do with.

Names and numbers are those of csi.proto of its specification; fields that are not here are passed
over, as protobuf has it. They are made here, at the import, so that no compiler is needed.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _FLAG, _NUMBER = _Field.TYPE_STRING, _Field.TYPE_BOOL, _Field.TYPE_INT32
PACKAGE = "csi.v1"

MESSAGES: dict[str, tuple[tuple[str, int, Any], ...]] = {
    "Empty": (),
    "GetPluginInfoResponse": (("name", 1, _TEXT), ("vendor_version", 2, _TEXT)),
    "BoolValue": (("value", 1, _FLAG),),
    "ProbeResponse": (("ready", 1, "BoolValue"),),
    "MountVolume": (("fs_type", 1, _TEXT), ("volume_mount_group", 3, _TEXT)),
    "AccessMode": (("mode", 1, _NUMBER),),
    "VolumeCapability": (
        ("block", 1, "Empty"),
        ("mount", 2, "MountVolume"),
        ("access_mode", 3, "AccessMode"),
    ),
    "Entry": (("key", 1, _TEXT), ("value", 2, _TEXT)),
    "NodePublishVolumeRequest": (
        ("volume_id", 1, _TEXT),
        ("target_path", 4, _TEXT),
        ("volume_capability", 5, "VolumeCapability"),
        ("readonly", 6, _FLAG),
        ("volume_context", 8, "Entry*"),
    ),
    "NodeUnpublishVolumeRequest": (("volume_id", 1, _TEXT), ("target_path", 2, _TEXT)),
    "NodeGetInfoResponse": (("node_id", 1, _TEXT),),
}
"""Each with its fields: name, number, and type; a message's name with a star may come often. A map
is a row of messages with a key and a value.
"""


def _made() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="csi_node.proto", package=PACKAGE)
    file.syntax = "proto3"
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            field = message.field.add(name=field_name, number=number, label=_Field.LABEL_OPTIONAL)
            if isinstance(kind, str):
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{kind.rstrip('*')}"
                if kind.endswith("*"):
                    field.label = _Field.LABEL_REPEATED
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES}
    return {name: message_factory.GetMessageClass(found[name]) for name in MESSAGES}


TYPES = _made()
"""The classes, by their names."""
