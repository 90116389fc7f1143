"""Relative paths of options, made absolute before they go to processes that run in `/`.

A device file does that as it reads its text (`device_file.convert`); a program's options are made
already, so what their types call a path is looked for in the values.
"""

from __future__ import annotations

import copy
import os
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec

from vuproc.options import KIND, PATH

S = TypeVar("S", bound=msgspec.Struct)


def absolute(options: S) -> S:
    """The options with every `FilePath` absolute, from the program's folder; themselves, if they
    are so already. Raises OSError if that folder is gone.
    """
    changed: dict[str, Any] = {}
    for field in msgspec.structs.fields(options):
        before = getattr(options, field.name)
        after = _value(before, field.type)
        if after is not before:
            changed[field.name] = after
    if not changed:
        return options
    made = copy.copy(options)  # not made anew: its __post_init__ has run
    for name, value in changed.items():
        msgspec.structs.force_setattr(made, name, value)
    return made


def _value(value: Any, wanted: Any) -> Any:
    """One value, by what its type says; the same object if nothing is relative in it."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        metas = [meta for meta in arguments[1:] if isinstance(meta, msgspec.Meta)]
        if isinstance(value, str) and any((meta.extra or {}).get(KIND) == PATH for meta in metas):
            return value if not value or os.path.isabs(value) else os.path.join(os.getcwd(), value)
        return _value(value, arguments[0])
    if isinstance(value, msgspec.Struct):
        return absolute(value)
    if origin in (Union, UnionType):
        made = (_value(value, member) for member in arguments)
        return next((each for each in made if each is not value), value)
    if isinstance(value, (list, tuple)) and arguments:
        kinds = arguments if origin is tuple and arguments[-1] is not ... else ()
        items = [
            _value(item, kinds[i] if i < len(kinds) else arguments[0])
            for i, item in enumerate(value)
        ]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if isinstance(value, dict) and len(arguments) == 2:
        pairs = {key: _value(item, arguments[1]) for key, item in value.items()}
        return value if all(pairs[key] is value[key] for key in value) else pairs
    return value
