"""Where a running device is met, from its device file or its socket: with as little as it takes.

The file may be half edited, and what it names may be gone: that is no reason not to ask the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from vuproc.device_file.yaml_text import MAX_BYTES
from vuproc.errors import ConfigError, ConfigErrors
from vuproc.unix_path import ADMIN_SUFFIX


def socket_of(target: str) -> Path:
    """The vhost-user socket that `target` names: itself, or what its device file says.

    Raises ConfigErrors if the file does not say it, as far as it can be read.
    """
    path = Path(target)
    named = Path(f"{target}.yaml")
    if not path.exists() and named.is_file():
        path = named  # a device of a folder, by its name
    if not path.is_file():
        if not path.is_socket() and not Path(f"{target}{ADMIN_SUFFIX}").exists():
            raise _unreadable(target, "there is no such device file or socket")
        return path
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise _unreadable(target, (error.strerror or "cannot be read").lower()) from error
    found = _socket_in(text)
    if found is None:
        raise _unreadable(target, "no socket is named in what can be read of it")
    return Path(os.path.abspath(path.parent)) / Path(found).expanduser()


def _unreadable(target: str, reason: str) -> ConfigErrors:
    message = f"{reason}; the path of the device's socket can be given instead of the file"
    return ConfigErrors((ConfigError(target, 0, 0, message),))


def _socket_in(text: str) -> str | None:
    """The path of the key `socket`; whatever comes after it may be no YAML."""
    try:
        events = iter(YAML(typ="safe", pure=True).parse(text))
        for event in events:
            if isinstance(event, CollectionStartEvent):
                return _text_of("socket", events) if isinstance(event, MappingStartEvent) else None
    except (YAMLError, RecursionError, StopIteration):
        pass
    return None


def _text_of(wanted: str, events: Iterator[Event]) -> str | None:
    """The text of a key in the mapping that has just begun; of a socket's mapping, its path."""
    for key in events:
        if isinstance(key, CollectionEndEvent):
            return None
        if isinstance(key, CollectionStartEvent):
            _skip(events)
        value = next(events)
        found = isinstance(key, ScalarEvent) and key.value == wanted
        if found and isinstance(value, ScalarEvent):
            return str(value.value) or None
        if found:
            return _text_of("path", events) if isinstance(value, MappingStartEvent) else None
        if isinstance(value, CollectionStartEvent):
            _skip(events)
    return None


def _skip(events: Iterator[Event]) -> None:
    """Leave the collection that has just begun."""
    depth = 1
    while depth:
        event = next(events)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
