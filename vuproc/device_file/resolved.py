"""A device file as it is understood: absolute paths, every default, as YAML that means the same."""

from __future__ import annotations

from io import StringIO
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarint import OctalInt

from vuproc import loader
from vuproc.device_file.check import DeviceFile
from vuproc.device_file.model import File


def resolved(file: DeviceFile) -> str:
    """The file's YAML, without a newline at its end. A key that stands for "none" is left out."""
    workers = CommentedSeq(_flow(CommentedSeq(group)) for group in file.workers)
    content = CommentedMap(
        socket=CommentedMap(
            path=file.socket.path,
            mode=file.socket.mode,
            permissions=OctalInt(file.socket.permissions, width=3),
            **_present({"owner": file.socket.owner, "group": file.socket.group}),
        ),
        device=CommentedMap(type=_type(file), **_present(msgspec.to_builtins(file.options))),
        **{
            key: _flow(workers) if key == "workers" else _plain(getattr(file.keys, key))
            for key in File.__struct_fields__
            if key == "workers"
            or (key not in ("socket", "device") and getattr(file.keys, key) is not None)
        },
    )
    yaml = YAML()
    yaml.width = 10_000  # one key a line, however long its path
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue().rstrip("\n")


def summary(file: DeviceFile) -> str:
    """What the file describes, in a few words."""
    device = file.make_device()
    queues, workers = device.num_queues(), len(file.workers)
    return (
        f"{file.type_ref}, {queues} queue{'s' * (queues != 1)}, "
        f"{workers} worker{'s' * (workers != 1)}, {file.socket.mode} at {file.socket.path}"
    )


def _type(file: DeviceFile) -> str:
    path = loader.file_of(file.type_ref, file.base_dir)
    return file.type_ref if path is None else f"{path}:{file.type_ref.rpartition(':')[2]}"


def _present(options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _plain(value: Any) -> Any:
    if not isinstance(value, msgspec.Struct):
        return value
    said = msgspec.to_builtins(value)
    return CommentedMap(
        {k: _flow(CommentedSeq(v)) if isinstance(v, (list, tuple)) else v for k, v in said.items()}
    )


def _flow(sequence: CommentedSeq) -> CommentedSeq:
    sequence.fa.set_flow_style()
    return sequence
