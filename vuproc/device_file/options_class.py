"""Whether a struct of options can be filled from a device file, and travel to the workers."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT

from vuproc import place, texts
from vuproc.options import Options

RESERVED = "type"
"""The key of `device` that is not an option: it names the class."""


def options_problems(options: type[Options]) -> Iterator[str]:
    """Yield each thing wrong with the struct itself, after the line it stands in."""
    found = False
    for owner in options.__mro__[: options.__mro__.index(Options)]:
        for name, problem in (*_not_fields(owner), *_annotations(owner)):
            found = True
            yield place.about(owner, name, f"{name} {problem}")
    if not found:
        yield from _whole(options)


def travel_problem(options: Options) -> str | None:
    """What keeps the options from reaching a worker as they are."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=type(options))
    except Exception as error:
        return f"workers cannot be given these options: {texts.described(error)}"
    return None


def _not_fields(owner: type) -> Iterator[tuple[str, str]]:
    """What looks like an option in the body of `owner` and is none, for want of an annotation."""
    for name, value in vars(owner).items():
        if name.startswith("_") or (
            name in vars(Options) and name not in Options.__struct_fields__
        ):
            continue
        if isinstance(value, types.MemberDescriptorType) or hasattr(value, "__get__"):
            continue  # a field, or a method
        if callable(value) or name in place.annotations_of(owner):
            continue
        kind = type(value).__name__
        yield name, f"has no annotation, so it is no option; write {name}: {kind} = ..."


def _annotations(owner: type) -> Iterator[tuple[str, str]]:
    for name in place.annotations_of(owner):
        try:
            wanted = _resolved(owner, name)
        except Exception as error:
            yield name, f"has an annotation that does not resolve: {texts.described(error)}"
            continue
        if wanted is ClassVar or get_origin(wanted) is ClassVar:
            continue
        problem = _type_problem(wanted)
        if problem:
            yield name, problem


def _resolved(owner: type, name: str) -> Any:
    """The annotation of one field as a type. Raises whatever its evaluation does."""
    holder = type("Holder", (), {"__annotations__": {name: place.annotations_of(owner)[name]}})
    module = vars(sys.modules[owner.__module__])
    return get_type_hints(holder, module, dict(vars(owner)), include_extras=True)[name]


def _type_problem(wanted: Any) -> str | None:
    try:
        msgspec.msgpack.Decoder(wanted)
        foreign = _foreign(msgspec.inspect.type_info(wanted))
    except Exception as error:
        advice = ""
        if get_args(wanted) and get_origin(get_args(wanted)[0]) in (Union, types.UnionType):
            advice = "; bounds belong to a member of a union: Annotated[str, Meta(...)] | None"
        return f"has a type that cannot be had: {_reason(error)}{advice}"
    if foreign is not None:
        return f"is of type {foreign.__name__}, which no device file can hold"
    return None


def _foreign(info: Any, seen: frozenset[int] = frozenset()) -> type | None:
    """The first type inside `info` which msgspec does not know, if there is one.

    `seen` are the structs that it was found in: one may hold itself.
    """
    if isinstance(info, msgspec.inspect.CustomType):
        return info.cls
    if id(info) in seen or not isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        return None
    for key in info.__struct_fields__:
        value = getattr(info, key)
        for inner in value if isinstance(value, tuple) else (value,):
            found = _foreign(inner, seen | {id(info)})
            if found is not None:
                return found
    return None


def _whole(options: type[Options]) -> Iterator[str]:
    """What can be said once every annotation resolves."""
    try:
        fields = msgspec.structs.fields(options)
        msgspec.msgpack.Decoder(options)
    except Exception as error:
        yield place.at(place.of_class(options), f"{options.__name__}: {_reason(error)}")
        return
    if options.__struct_config__.array_like or options.__struct_config__.tag is not None:
        yield place.at(place.of_class(options), f"{options.__name__} is array_like or has a tag")
    keys = {field.encode_name for field in fields}
    unknown = sorted(set(options.live) - keys)
    if unknown:
        yield place.about(options, "live", f"live names {', '.join(unknown)}, which is no option")
    described: object = options.json_schema
    if not isinstance(described, Mapping):
        yield place.about(options, "json_schema", "json_schema is not a mapping")
    for field in fields:
        if field.encode_name == RESERVED:
            text = f"{field.name} is the key {RESERVED}, which names the device's class"
            yield place.about(options, field.name, text)
        problem = _default_problem(field)
        if problem:
            yield place.about(options, field.name, f"{field.name} {problem}")


def _default_problem(field: Any) -> str | None:
    """What is wrong with a field's default, by the way that it goes to a worker."""
    try:
        default = field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        if default is not NODEFAULT:
            msgspec.msgpack.decode(msgspec.msgpack.encode(default), type=field.type)
    except Exception as error:
        return f"has a default that is not of its type: {_reason(error)}"
    return None


def _reason(error: Exception) -> str:
    """msgspec's words without those for machines."""
    return " ".join(str(error).replace("`", "").split()) or type(error).__name__
