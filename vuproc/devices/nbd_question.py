"""What an NBD server is asked before its export is served.

As a program, `python -m vuproc.devices.nbd_question URI`, it asks, and says what was said of the
export: a server may take its time, and whoever serves a disk has none.
"""

from __future__ import annotations

import sys

from vuproc import inquiries
from vuproc.devices.nbd_address import Address
from vuproc.devices.nbd_handshake import (
    CONNECT_S,
    Export,
    NbdError,
    leave,
    open_export,
    reason_of,
)
from vuproc.inquiries import AWAY, Inquiry

ASK_S = 15.0
"""Seconds for the program as a whole; a connection and a handshake have `CONNECT_S` each."""


def ask(uri: str) -> Export:
    """What the server says of the export, to a process of its own. Raises NbdError, OSError."""
    inquiry = Inquiry((sys.executable, "-P", "-m", __name__, uri), ASK_S, str(Address.of(uri)))
    answer = inquiries.ask(inquiry)
    if answer.code != 0:
        raise NbdError(inquiry.reason_of(answer))
    if len(answer.output) != Export.PACKED_BYTES:
        raise NbdError("an answer that is none")
    return Export.unpack(answer.output)


def main() -> int:
    """Say what is there, packed."""
    try:
        connected, export = open_export(Address.of(sys.argv[1]), CONNECT_S)
    except (NbdError, OSError) as error:
        print(reason_of(error), file=sys.stderr)
        refused = isinstance(error, (NbdError, PermissionError))
        return 1 if refused else AWAY
    leave(connected)
    sys.stdout.buffer.write(export.pack())
    return 0


if __name__ == "__main__":
    sys.exit(main())
