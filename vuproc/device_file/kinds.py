"""Values which are written in more ways than their type has: sizes, paths, permissions."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path

from vuproc.device_file.yaml_text import ScalarValue
from vuproc.options import METRICS, PATH, PERMISSIONS, POWER_OF_TWO, SIZE
from vuproc.unix_path import LOCK_SUFFIX, MAX_ADDRESS

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

SIZE_PATTERN = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB)?$"
PERMISSIONS_PATTERN = r"^(0o?)?[0-7]{1,3}$"

_SIZE = re.compile(r"([0-9]+) ?([A-Za-z]*)")


class KindError(ValueError):
    """The value is not written as its kind demands; the message says what is wrong."""


def convert(kind: str, value: ScalarValue, base_dir: Path) -> object:
    """The value as its kind reads it, still to be checked against its type. Raises KindError."""
    converter = _CONVERTERS.get(kind)
    return value.value if converter is None else converter(value, base_dir)


def _size(value: ScalarValue, base_dir: Path) -> object:
    if not isinstance(value.value, str):
        return value.value
    match = _SIZE.fullmatch(value.value.strip())
    if match is None:
        raise KindError(f"expected a size such as 64MiB, got {value.value!r}")
    number, unit = match.groups()
    if unit not in UNITS:
        units = ", ".join(name for name in UNITS if name)
        raise KindError(f"unknown unit {unit} in size {value.value!r}; units are {units}")
    return int(number) * UNITS[unit]


def _path(value: ScalarValue, base_dir: Path) -> object:
    if not isinstance(value.value, str):
        return value.value
    if not value.value:
        raise KindError("expected a path, got nothing")
    if "\0" in value.value:
        raise KindError("a path cannot hold a zero byte")
    try:
        value.value.encode()
    except UnicodeEncodeError as error:
        raise KindError("a path cannot hold half of a surrogate pair") from error
    # Not resolved: a symbolic link may be meant to change, and /dev/disk/by-id says more.
    return str(base_dir / Path(value.value).expanduser())


def _permissions(value: ScalarValue, base_dir: Path) -> object:
    """File permissions by their digits, always octal: YAML 1.2 reads 0600 as six hundred."""
    if re.fullmatch(PERMISSIONS_PATTERN, value.text) is None:
        raise KindError(f"expected octal file permissions such as 0600, got {value.text}")
    return int(value.text.removeprefix("0o"), 8)


def metrics_address(text: str) -> str | tuple[str, int]:
    """The path of a Unix socket, or an address and a port. Raises KindError."""
    kind, colon, path = text.partition(":")
    if kind == "unix" and colon:
        return path
    host, colon, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    except ValueError:
        raise KindError(f"expected unix:PATH or 127.0.0.1:PORT, got {text!r}") from None
    if not 0 < number < 1 << 16:
        raise KindError(f"expected a port from 1 to 65535, got {port!r}")
    if not address.is_loopback:
        raise KindError(f"{address} is no loopback address: metrics are not for other machines")
    return str(address), number


def _metrics(value: ScalarValue, base_dir: Path) -> object:
    if not isinstance(value.value, str):
        return value.value
    place = metrics_address(value.value)
    if not isinstance(place, str):
        return value.value
    path = str(_path(ScalarValue(value.mark, place, place, value.quoted), base_dir))
    length = len(os.fsencode(path))
    if length > MAX_ADDRESS - len(LOCK_SUFFIX):
        raise KindError(f"the socket's path has {length} bytes, too many: {path}")
    return f"unix:{path}"


def _power_of_two(value: ScalarValue, base_dir: Path) -> object:
    number = value.value
    if type(number) is int and number > 0 and number & (number - 1):
        raise KindError(f"expected a power of two, got {number}")
    return number


_CONVERTERS: dict[str, Callable[[ScalarValue, Path], object]] = {
    SIZE: _size,
    PATH: _path,
    PERMISSIONS: _permissions,
    METRICS: _metrics,
    POWER_OF_TWO: _power_of_two,
}
