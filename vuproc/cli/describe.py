"""Verbs that say what a device file means, and what types there are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vuproc.cli.arguments import EXIT_OK, EXIT_USAGE
from vuproc.errors import ConfigErrors, DeviceLoadError

if TYPE_CHECKING:
    from vuproc.device import Device


def check(options: argparse.Namespace) -> int:
    """`vuproc check`: every error of every file, or the files as they are understood."""
    from vuproc.device_file.check import check_shared, load
    from vuproc.device_file.resolved import resolved, summary

    code = EXIT_OK
    for name in options.files:
        try:
            file = load(name)
            check_shared(file)
        except ConfigErrors as errors:
            print(errors, file=sys.stderr)
            code = EXIT_USAGE
            continue
        if options.sandbox:
            from vuproc.device_file.sandbox_report import sandbox_report

            print(f"{name}: {summary(file)}\n{sandbox_report(file)}")
        else:
            print(resolved(file) if options.resolved else f"{name}: ok: {summary(file)}")
    return code


def schema(options: argparse.Namespace) -> int:
    """`vuproc schema`: the JSON Schema."""
    import json

    from vuproc.device_file.schema import schema as make_schema

    print(json.dumps(make_schema(), indent=2))
    return EXIT_OK


def devices(options: argparse.Namespace) -> int:
    """`vuproc devices`: the list, or one type in full."""
    from vuproc import loader
    from vuproc.cli import reference

    if options.name is not None:
        found = _usable(options.name)
        if found is None:
            return EXIT_USAGE
        print(reference.page(options.name, found))
        return EXIT_OK
    for name in loader.available():
        found = _usable(name)
        if found is not None:
            print(reference.summary(name, found))
    return EXIT_OK


def _usable(ref: str) -> type[Device] | None:
    """The device class that `ref` names; None, once it was said what is wrong with it."""
    from vuproc import loader
    from vuproc.device_file.device_class import class_problems

    try:
        found = loader.load(ref, Path.cwd())
    except DeviceLoadError as error:
        print(f"vuproc: {error}", file=sys.stderr)
        return None
    problems = list(class_problems(found))
    for problem in problems:
        print(f"vuproc: {ref}: {problem}", file=sys.stderr)
    return None if problems else found
