"""What shells complete the words of a program by, from its parser, by shtab.

    python -m vuproc.cli.completion FOLDER

writes the scripts of all programs below FOLDER, a prefix's `share`, where bash, zsh and fish look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import shtab

from vuproc.cli import main, program, reference

DEVICE_FILES = shtab.glob("*.yaml", "*.yml")
RUNNING = shtab.glob("*.yaml", "*.yml", "*.sock")
"""What names a running device: its file, or its socket."""
BY_METAVAR = {"PATH": shtab.FILE, "FOLDER": shtab.DIRECTORY, "FROM": shtab.FILE, "TO": shtab.FILE}

PLACES = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}
"""Where shells find scripts by a program's name, below `share`."""


def write(folder: Path) -> Iterator[Path]:
    """Write the scripts of every program; their paths. Raises OSError."""
    for name in main.PROGRAMS:
        for shell, place in PLACES.items():
            path = folder / place.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script(shell, name), encoding="utf-8")
            yield path


def script(shell: str, name: str) -> str:
    """The completions of `vuproc`, or of the program `vuproc-TYPE` of a built-in type, for a shell
    that shtab knows.
    """
    parser = main.make_parser() if name == "vuproc" else _program(name.removeprefix(program.PREFIX))
    for action in _actions(parser):
        if action.metavar == "FILE":
            _set(action, RUNNING if action.dest == "target" else DEVICE_FILES)
        elif action.metavar in BY_METAVAR:
            _set(action, BY_METAVAR[str(action.metavar)])
    found: str = shtab.complete(parser, shell)
    return found


def _program(type_name: str) -> argparse.ArgumentParser:
    device = program.class_of(type_name)
    parser = program.make_parser(type_name, device, reference.descriptions(device))
    words = {
        program.DEST + field.name: program.words_of(field.type)
        for field in msgspec.structs.fields(device.options_type)
    }
    for action in parser._actions:
        # Nothing is parsed by this parser: what is wrong is said by the check of device files.
        action.choices = action.choices or words.get(action.dest) or None
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)
        else:
            yield action


def _set(action: argparse.Action, how: Any) -> None:
    action.complete = how  # type: ignore[attr-defined]  # where shtab looks for it


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name} FOLDER")
    for written in write(Path(sys.argv[1])):
        print(written)
