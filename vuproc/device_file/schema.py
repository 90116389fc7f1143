"""The JSON Schema (2020-12) of the device file, made from the types that check it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import msgspec

from vuproc import loader, options
from vuproc.device import Device
from vuproc.device_file.device_class import class_problems
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.kinds import PERMISSIONS_PATTERN, SIZE_PATTERN
from vuproc.device_file.model import File
from vuproc.errors import DeviceLoadError
from vuproc.options import Options

DIALECT = "https://json-schema.org/draft/2020-12/schema"
AUTHOR_TYPE = r"^.+:[A-Za-z_][A-Za-z0-9_.]*$"
"""`./file.py:Class` or `module:Class`: its options are the author's, so any key may follow."""
AUTHOR = "author"
"""Name of the definition which an author's device is checked against."""

Schema = dict[str, Any]


def schema() -> Schema:
    """The schema: built-in and installed device types with their options, authors' by pattern."""
    types = device_types()
    root, definitions = struct_schema(File)
    root["properties"]["device"] = _device(types, root["properties"]["device"])
    definitions |= _options(AUTHOR, Options, {"pattern": AUTHOR_TYPE})
    definitions[AUTHOR]["additionalProperties"] = True
    for name, device in types.items():
        definitions |= _options(
            name, device.options_type, {"const": name}, without=fixed_options(device)
        )
    return {"$schema": DIALECT, **root, "$defs": definitions}


def device_types() -> dict[str, type[Device]]:
    """The class of every device type that has a name and can be imported."""
    types = {}
    for name in loader.available():
        try:
            found = loader.load(name, Path.cwd())
        except DeviceLoadError:
            continue  # an installed package that does not work must not take the others along
        if not any(class_problems(found)):
            types[name] = found
    return types


def struct_schema(
    struct: type[msgspec.Struct],
    prefix: str = "",
    *,
    kinds: bool = False,
    without: Container[str] = (),
) -> tuple[Schema, dict[str, Schema]]:
    """The schema of one struct, and those of the structs in it, named `prefix` + name.

    With `kinds`, a field that can be written in several ways has its kind as "x-kind" instead.
    Fields whose names are in `without` are left out.
    """
    _, components = msgspec.json.schema_components(
        [struct], ref_template="#/$defs/" + prefix + "{name}"
    )
    tidied = {name: _tidy(component, kinds) for name, component in components.items()}
    root = tidied.pop(struct.__name__)
    root.pop("title", None)
    for field in msgspec.structs.fields(struct):
        if field.name in without:
            del root["properties"][field.encode_name]
    return root, {prefix + name: component for name, component in tidied.items()}


def _options(
    name: str,
    options_type: type[Options],
    type_schema: Schema,
    *,
    without: Container[str] = (),
) -> dict[str, Schema]:
    result, nested = struct_schema(options_type, f"{name}.", without=without)
    result["properties"] = {"type": type_schema, **result["properties"]}
    result["required"] = ["type", *result.get("required", ())]
    result.update(options_type.json_schema)
    return {name: result, **nested}


def _device(types: Iterable[str], described: Schema) -> Schema:
    named = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"$ref": f"#/$defs/{name}"},
        }
        for name in types
    ]
    author = {
        "if": {"properties": {"type": {"pattern": AUTHOR_TYPE}}, "required": ["type"]},
        "then": {"$ref": f"#/$defs/{AUTHOR}"},
    }
    choices = [{"enum": list(types)}, {"pattern": AUTHOR_TYPE}]
    return {
        "description": described["description"],
        "type": "object",
        "properties": {
            "type": {
                "description": "Name of a device type, ./file.py:Class or module:Class.",
                "type": "string",
                "anyOf": choices,
            }
        },
        "required": ["type"],
        "allOf": [*named, author],
    }


def _tidy(node: Any, kinds: bool) -> Any:
    """Rewrite what msgspec writes into what the device file takes.

    A kind becomes all the ways to write it, and null goes: a key is left out instead.
    """
    if isinstance(node, list):
        return [_tidy(item, kinds) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _tidy(value, kinds) for key, value in node.items()}
    if isinstance(result.get("description"), str):
        result["description"] = " ".join(result["description"].split())
    if result.get("default", ...) is None:
        del result["default"]
    if not result.get("required", True):
        del result["required"]
    if "anyOf" in result:
        members = [member for member in result["anyOf"] if member != {"type": "null"}]
        if len(members) == 1:
            del result["anyOf"]
            result = {**members[0], **result}
        else:
            result["anyOf"] = members
    return result if kinds else _widen(result)


def _widen(node: Schema) -> Schema:
    if "null" in node.get("enum", ()):
        # As a word of ours YAML may have it without quotes.
        node = {**node, "enum": [*node["enum"], None]}
    match node.pop("x-kind", None):
        case options.SIZE:
            # minimum and multipleOf speak of numbers only, pattern of strings only.
            return {**node, "type": ["integer", "string"], "pattern": SIZE_PATTERN}
        case options.PERMISSIONS:
            # A YAML 1.2 reader hands 0600 over as 600.
            node.pop("maximum", None)
            node.pop("default", None)
            return {
                **node,
                "type": ["integer", "string"],
                "maximum": 777,
                "pattern": PERMISSIONS_PATTERN,
                "default": "0600",
            }
        case options.POWER_OF_TWO:
            low, high = node.pop("minimum"), node.pop("maximum")
            powers = [1 << bit for bit in range(32) if low <= 1 << bit <= high]
            return {**node, "enum": powers}
        case options.PATH:
            return {**node, "minLength": 1}
    return node
