"""Classes of msgspec structs, taken apart for pickle: unlike others, such a class cannot be made
from its dictionary. The bounds of its fields (`msgspec.Meta`) do not pickle either.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from vuproc import place

_Struct: Any = type(msgspec.Struct)
_MADE_BY_STRUCT = frozenset(
    {"__slots__", "__match_args__", "__annotations__", "__weakref__", "__dict__"}
)
"""What the class of a struct has of its metaclass."""
_CONFIG = (
    "frozen",
    "order",
    "eq",
    "array_like",
    "forbid_unknown_fields",
    "tag",
    "tag_field",
    "omit_defaults",
    "repr_omit_defaults",
    "gc",
    "weakref",
    "dict",
    "cache_hash",
)
"""What the head of a struct's class may say."""
_META = (
    "gt",
    "ge",
    "lt",
    "le",
    "multiple_of",
    "pattern",
    "min_length",
    "max_length",
    "tz",
    "title",
    "description",
    "examples",
    "extra_json_schema",
    "extra",
)
"""What msgspec.Meta may say; it cannot be pickled."""


def parts_of(obj: Any) -> Any:
    """What pickle's `reducer_override` returns for a struct's class that is not to be had by its
    name, and for `msgspec.Meta`; NotImplemented for everything else.
    """
    if isinstance(obj, _Struct) and not _is_found(obj):
        return _class_parts(obj)
    if isinstance(obj, msgspec.Meta):
        return _make_meta, ({key: getattr(obj, key, None) for key in _META},)
    return NotImplemented


def _is_found(cls: type) -> bool:
    """Whether the class is what its module has under its name."""
    if cls.__module__ == "__main__":
        return False
    found: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _class_parts(cls: Any) -> tuple[Any, ...]:
    """A struct's class as pickle takes it apart: how to make it, and what it gets then."""
    own = place.annotations_of(cls)
    fields = [
        (field.name, field.type, _how(field))
        for field in msgspec.structs.fields(cls)
        if field.name in own
    ]
    config = {
        name: getattr(cls.__struct_config__, name)
        for name in _CONFIG
        if hasattr(cls.__struct_config__, name)
    }
    config["kw_only"] = not any(name in cls.__match_args__ for name, _, _ in fields)
    # Asked for when the class is made, and by nobody later.
    first = {key: vars(cls)[key] for key in ("__post_init__",) if key in vars(cls)}
    rest = {
        key: value
        for key, value in vars(cls).items()
        if key not in _MADE_BY_STRUCT
        and key not in first
        and key not in cls.__struct_fields__
        and not key.startswith("__struct_")
    }
    parts = (cls.__name__, cls.__bases__, fields, config, first)
    return _make_struct, parts, rest, None, None, _complete_struct


def _how(field: Any) -> dict[str, Any]:
    given = {
        name: getattr(field, name)
        for name in ("default", "default_factory")
        if getattr(field, name) is not msgspec.NODEFAULT
    }
    return {**given, "name": field.encode_name}


def _make_struct(
    name: str,
    bases: tuple[type, ...],
    fields: list[tuple[str, Any, dict[str, Any]]],
    config: dict[str, Any],
    namespace: dict[str, Any],
) -> type:
    made = [(key, kind, msgspec.field(**how)) for key, kind, how in fields]
    return msgspec.defstruct(name, made, bases=bases, namespace=namespace, **config)


def _make_meta(given: dict[str, Any]) -> msgspec.Meta:
    return msgspec.Meta(**{key: value for key, value in given.items() if value is not None})


def _complete_struct(cls: type, rest: Mapping[str, Any]) -> None:
    for key, value in rest.items():
        setattr(cls, key, value)
