"""What words of the command line mean, and how mistakes in them end."""

from __future__ import annotations

import argparse
import os
import re
import socket
import stat
import sys
from typing import NoReturn

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
COLUMNS = 80
"""Of what is no terminal."""


def check_descriptor(number: int) -> None:
    """Exit with 2 unless this is the number of a Unix stream socket."""
    try:
        status = os.fstat(number)
    except OSError as error:
        usage_error(f"--fd {number}: {(error.strerror or 'not usable').lower()}")
    if not stat.S_ISSOCK(status.st_mode):
        usage_error(f"--fd {number}: not a socket")
    with socket.socket(fileno=os.dup(number)) as inherited:
        if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_STREAM:
            usage_error(f"--fd {number}: not a Unix stream socket")


def usage_error(message: str) -> NoReturn:
    """End with 2, and say why."""
    print(f"vuproc: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def seconds(text: str) -> int:
    """A number of seconds."""
    if re.fullmatch(r"[1-9][0-9]{0,6}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def size(text: str) -> int:
    """Bytes, of 256K or 4M."""
    if re.fullmatch(r"[1-9][0-9]{0,6}[KM]", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256K or 4M")
    return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]


def descriptor(text: str) -> int:
    """The number of an inherited descriptor."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a descriptor")
    return int(text)


def memory(text: str) -> str:
    """The size of a guest's memory, as VMMs write it."""
    if re.fullmatch(r"[1-9][0-9]*[MG]", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 4G")
    return text


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as it is written, as wide as the terminal.

    argparse makes a formatter for each option that is added, and for the first imports all of
    `shutil`, compression included, to know how wide that is.
    """

    def __init__(
        self,
        prog: str,
        indent_increment: int = 2,
        max_help_position: int = 24,
        width: int | None = None,
    ) -> None:
        width = _columns() - 2 if width is None else width
        super().__init__(prog, indent_increment, max_help_position, width)


def _columns() -> int:
    """As `shutil.get_terminal_size` has them."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or COLUMNS
    except (AttributeError, OSError, ValueError):
        return COLUMNS
