"""The service manager's protocol: what we tell it, the descriptors it keeps for us and hands back.

Client side of sd_notify(3), sd_listen_fds(3) and the file descriptor store. Whoever started us may
be systemd or vuproc's own keeper (`vuproc run --supervised`): both speak it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Mapping, MutableMapping, Sequence

from vuproc import texts
from vuproc.errors import ReasonedError
from vuproc.fd import Fd, HasFileno
from vuproc.handover.keeper.standby import FIELD

log = logging.getLogger("vuproc.master")

FIRST_FD = 3
"""Where inherited descriptors begin (SD_LISTEN_FDS_START)."""
MAX_INHERITED = 4096
"""Descriptors that are taken over: 509 regions, 4 for each of 256 queues, and as many again."""
MAX_NAME = 255
"""Bytes of a descriptor's name (FDNAME_MAX of systemd)."""
MAX_FDS_A_MESSAGE = 253
"""The kernel's SCM_MAX_FD."""
MAX_STATUS = 1024
"""Bytes of a status line; systemd drops datagrams above a page."""
SEND_DEADLINE = 1.0
"""Seconds in which the service manager must have room for a message."""
UNNAMED = "unknown"
"""What systemd calls a descriptor without a name."""


class InheritError(ReasonedError):
    """The environment announces descriptors that are not there; `reason` says what is wrong."""


def inherit(environ: MutableMapping[str, str] = os.environ) -> dict[str, tuple[Fd, ...]]:
    """Take over the descriptors that the environment announces, by name; several may share one.

    The announcement is removed, so that no child believes it, and the descriptors are closed at
    exec. Nothing comes back if it is meant for another process. Raises InheritError, and then the
    descriptors are left as they are: better not to go on.
    """
    pid, count, names = (
        environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count:
        return {}
    # isdecimal alone would take digits of other scripts, and int() more digits than it likes.
    if not (count.isascii() and count.isdecimal() and len(count) <= 5):
        raise InheritError(f"LISTEN_FDS={count!r} is not a number")
    if int(count) > MAX_INHERITED:
        raise InheritError(f"LISTEN_FDS={count} is above {MAX_INHERITED}")
    named = names.split(":") if names else [UNNAMED] * int(count)
    if len(named) != int(count):
        raise InheritError(f"LISTEN_FDNAMES has {len(named)} names for {count} descriptors")
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    for number in numbers:
        try:
            flags = fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            raise InheritError(f"LISTEN_FDS={count}, but descriptor {number} is closed") from None
        fcntl.fcntl(number, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    found: dict[str, tuple[Fd, ...]] = {}
    for name, number in zip(named, numbers, strict=True):
        found[name] = (*found.get(name, ()), Fd(number))
    return found


def announced(name: str, limit: int, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """What is in a file that `inherit` will find under a name, at most `limit` bytes of it.

    None if there is none, or more than one. Nothing is taken over.
    """
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if environ.get("LISTEN_PID") != str(os.getpid()) or names.count(name) != 1:
        return None
    try:
        return os.pread(FIRST_FD + names.index(name), limit, 0)
    except OSError:
        return None


class Notifier:
    """Tells the service manager how we are, and has it keep descriptors for our successor.

    Without a service manager every method does nothing. None raises or blocks for longer than
    `SEND_DEADLINE`: one that cannot be told is worth a warning, not the service. After one that did
    not read for so long nobody waits again until it reads. Each method returns whether the message
    is on its way.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        """`address` as NOTIFY_SOCKET has it, None for nobody; `watchdog_s` as WATCHDOG_USEC."""
        self.watchdog_s = watchdog_s
        """Seconds after which a service that has not said `watchdog` is killed; None: never."""
        self.environment: dict[str, str] = {}
        """What the environment said, for a program that takes this process's place."""
        self._address: str | bytes | None = None
        self._socket: socket.socket | None = None
        self._reads = True
        if address is None:
            return
        if address[:1] not in ("/", "@") or len(address) < 2:
            log.warning("NOTIFY_SOCKET=%s: not a Unix socket, not used", address)
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        seconds, rest = divmod(SEND_DEADLINE, 1)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6))
        )

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """The one that the environment names; its variables are removed, as children are not us."""
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "VUPROC_KEEPER")
        found = {name: environ.pop(name) for name in names if name in environ}
        address = found.get("NOTIFY_SOCKET")
        interval, pid = found.get("WATCHDOG_USEC", ""), found.get("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        usable = interval.isascii() and interval.isdecimal() and len(interval) < 16
        watchdog_s = int(interval) / 1e6 if meant and usable and int(interval) else None
        notifier = cls(address, watchdog_s)
        notifier.environment = found
        return notifier

    @property
    def active(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    @property
    def keeper(self) -> int | None:
        """The process of vuproc's keeper, if that is who started us."""
        said = self.environment.get("VUPROC_KEEPER", "")
        return os.getppid() if said == str(os.getppid()) else None

    def standby(self, word: str) -> bool:
        """Something about a standby master (`vuproc.handover.keeper.standby.FIELD`)."""
        return self.keeper is not None and self._send(f"{FIELD}={word}")

    def ready(self) -> bool:
        """Start-up, or a reload, is over."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """We are about to end by our own will."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send("STATUS=" + texts.line(" ".join(text.split()), MAX_STATUS))

    def watchdog(self) -> bool:
        """We are alive."""
        return self._send("WATCHDOG=1")

    def store(self, name: str, *fds: HasFileno) -> bool:
        """Keep copies of `fds` under `name` until `remove`, also when their other end hangs up.

        systemd keeps no second copy of the same open file, whatever its name, and nobody says so.
        ValueError for a name that the protocol cannot carry.
        """
        _check_name(name)
        text = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"
        chunks = range(0, len(fds), MAX_FDS_A_MESSAGE)
        return all(self._send(text, fds[at : at + MAX_FDS_A_MESSAGE]) for at in chunks)

    def remove(self, name: str) -> bool:
        """Forget every descriptor that is kept under `name`."""
        _check_name(name)
        return self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def close(self) -> None:
        """Nobody is told any more. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str, fds: Sequence[HasFileno] = ()) -> bool:
        if self._socket is None or self._address is None:
            return False
        numbers = array.array("i", [fd.fileno() for fd in fds])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
        flags = socket.MSG_NOSIGNAL | (0 if self._reads else socket.MSG_DONTWAIT)
        try:
            self._socket.sendmsg([text.encode()], rights, flags, self._address)
            self._reads = True
        except OSError as error:
            what = text.partition("\n")[0]
            if error.errno == errno.EAGAIN:
                waited_s = SEND_DEADLINE if self._reads else 0.0
                self._reads = False
                waited = texts.seconds(waited_s)
                log.warning("the service manager took no %s for %s", what, waited)
            elif error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                log.warning("the service manager has gone; nobody keeps our descriptors now")
                self.close()
            else:
                log.warning("the service manager could not be sent %s: %s", what, error.strerror)
            return False
        return True


def _check_name(name: str) -> None:
    """What systemd's fdname_is_valid takes, less the empty name."""
    if not 0 < len(name) <= MAX_NAME or not all(" " <= c < "\x7f" and c != ":" for c in name):
        raise ValueError(f"{name!r} cannot name a descriptor")
