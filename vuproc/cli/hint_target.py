"""What the hints are made of, and what those of several clients have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vuproc.cli.client_names import NAMES, SPELT
from vuproc.errors import VuprocError

NET, BLK, SCSI, FS = 1, 2, 8, 26
EVERYBODY = 0o002
"""The permission to connect that a socket gives to everybody."""
GROUP = 0o020
"""The one that it gives to its group."""


class HintError(VuprocError):
    """This client cannot have this device; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the hints are made of."""

    device_id: int
    queues: int
    queue_size: int
    config_size: int
    """Bytes of the device's configuration space."""
    socket: str
    listens: bool
    """vuproc listens (mode: server) and the client connects; otherwise the other way round."""
    memory: str
    """Size of guest memory as the clients write it: 1G."""
    name: str
    """A word for the identifiers of the client."""
    tag: str
    """What a guest mounts a file system by."""
    permissions: int
    """Of the socket."""
    owner: str
    """The user that the socket is given to, in words."""
    group: str
    """The same for the group."""
    packed: bool = True
    """Whether packed rings are offered."""

    @property
    def kind(self) -> str:
        """The device type in words."""
        return NAMES.get(self.device_id, f"device of virtio's type {self.device_id}")

    @property
    def a_kind(self) -> str:
        """The same with its article, which goes by the sound: an SPI controller, a SCSI host."""
        sounds = self.kind.lower().startswith((*"aeiou", *SPELT))
        return f"{'an' if sounds else 'a'} {self.kind}"


def order(target: Target, client: str) -> str:
    """Who starts first."""
    if target.listens:
        return f"# vuproc listens: start it before {client}."
    return f"# {client} listens: start it and vuproc in any order."


def access(target: Target, client: str, user: str = "USER") -> list[str]:
    """Who may connect to our socket, and what to write if the client is `user`, somebody else."""
    if not target.listens:
        return []
    permissions = f"(permissions {target.permissions:04o})"
    if target.permissions & EVERYBODY:
        return [f"# Everybody who can reach the socket's folder may connect {permissions}."]
    who = f"{target.owner} and {target.group}" if target.permissions & GROUP else target.owner
    return [
        f"# Only {who} may connect {permissions}. If {client} runs as another",
        f"# user, the device file needs socket: {{path: PATH, owner: {user}}}, or group: GROUP",
        "# with permissions: 0660, and that user must be able to reach the socket's folder.",
    ]


def must_listen(target: Target, client: str) -> None:
    """Raises HintError in client mode."""
    if not target.listens:
        raise HintError(
            f"{client} connects to a listening device: set mode: server in the device file"
        )


def larger_queues(target: Target) -> str:
    """What becomes of a driver that wants larger ones."""
    return (
        f"# Queues of more than {target.queue_size} entries are refused, and the guest then hangs "
        "in its probe: raise queue_size in the device file for them."
    )


def key_value(client: str, path: str) -> str:
    """A path as the value in key=value,key=value; quoted if it holds what separates them."""
    if '"' in path:
        raise HintError(f'{client} takes no socket path with a " in it, and there is one in {path}')
    return f'"{path}"' if re.search(r"[,=\[\]\s]", path) else path


def c_string(text: str) -> str:
    """As a constant in C."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def on(value: bool) -> str:
    """As QEMU writes it."""
    return "on" if value else "off"
