"""The manual pages, from the parsers of the programs and the types of the device file:

    python -m vuproc.cli.manual FOLDER

writes vuproc.1, a page of each program (vuproc-blk.1 ...) and vuproc-device-file.5 into FOLDER/man1
and FOLDER/man5. The date in them is that of SOURCE_DATE_EPOCH, if that is set: the same sources
then make the same bytes.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec

from vuproc import __version__
from vuproc.cli import main, program, reference
from vuproc.cli.roff import Page, bold, italic
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.model import File, Sandbox, Socket
from vuproc.devices import BUILTIN
from vuproc.options import Options

DEVICE_FILE = "vuproc-device-file"


def write(folder: Path) -> Iterator[Path]:
    """Write every page; their paths. Raises OSError."""
    for page in pages(_date()):
        path = folder / f"man{page.section}" / f"{page.name}.{page.section}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(page), encoding="ascii")
        yield path


def pages(date: str) -> Iterator[Page]:
    """Every page, as of a date."""
    yield _vuproc(date)
    for name in BUILTIN:
        yield _program(name, date)
    yield _device_file(date)


def _date() -> str:
    """Today, or the day that a reproducible build names."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


_page = partial(Page, source=f"vuproc {__version__}")


def _vuproc(date: str) -> Page:
    parser = main.make_parser()
    page = _page(
        "vuproc",
        1,
        "serve virtio devices, one process a virtqueue",
        date=date,
        manual="User Commands",
    )
    page.heading("SYNOPSIS")
    page.usage(_usage(parser))
    page.heading("DESCRIPTION")
    page.text(parser.description or "")
    page.heading("OPTIONS")
    _entries(page, parser)
    page.heading("VERBS")
    for name, verb in verbs(parser).items():
        page.subheading(f"vuproc {name}")
        page.usage(_usage(verb))
        page.text(verb.description or "")
        _entries(page, verb)
        page.text(verb.epilog or "")
    page.heading("NOTES")
    page.text(parser.epilog or "")
    _see_also(page, (DEVICE_FILE, 5), *((f"{program.PREFIX}{name}", 1) for name in BUILTIN))
    return page


def _program(type_name: str, date: str) -> Page:
    device = program.class_of(type_name)
    parser = program.make_parser(type_name, device, reference.descriptions(device))
    about = inspect.cleandoc(device.__doc__ or "")
    page = _page(
        parser.prog,
        1,
        about.partition("\n")[0].rstrip("."),
        date=date,
        manual="User Commands",
    )
    page.heading("SYNOPSIS")
    page.usage(f"{parser.prog} [--socket-path PATH | --fd N] [OPTION ...]")
    page.heading("DESCRIPTION")
    page.text(parser.description or "")
    page.text(about)
    page.text(parser.epilog or "")
    page.heading("OPTIONS")
    _entries(page, parser)
    _see_also(page, ("vuproc", 1), (DEVICE_FILE, 5))
    return page


def _device_file(date: str) -> Page:
    page = _page(DEVICE_FILE, 5, "what vuproc serves, and where", date=date, manual="File Formats")
    page.heading("DESCRIPTION")
    page.text(
        "A device file says what vuproc(1) serves and where. It is YAML 1.2, at most 1 MiB. The "
        "device is called by the file's name without its ending, and a folder of such files is "
        "served by one command.\n\n"
        "`vuproc check FILE` reports everything that is wrong in a file, each thing with its line "
        "and column; `vuproc check --resolved FILE` prints the file as it is understood, and "
        "`vuproc schema` the JSON Schema (2020-12), for editors."
    )
    page.heading("KEYS")
    _keys(page, File)
    page.heading("SOCKET AS A MAPPING")
    _keys(page, Socket)
    page.heading("SANDBOX AS A MAPPING")
    _keys(page, Sandbox)
    page.heading("DEVICE")
    page.text(
        "type (required) is the name of a built-in type, or of one that an installed package "
        "brings (`vuproc devices` lists them); ./file.py:Class, a class in a Python file; or "
        "module:Class. The other keys are the options of that type. Every type has these:"
    )
    common = {field.name for field in msgspec.structs.fields(Options)}
    _keys(page, Options)
    for name in BUILTIN:
        device = program.class_of(name)
        page.subheading(f"device, type: {name}")
        page.text(inspect.cleandoc(device.__doc__ or ""))
        _keys(page, device.options_type, common | fixed_options(device).keys())
    page.heading("EXAMPLES")
    page.text("A disk of four queues:")
    page.example(
        "socket: /run/vuproc/disk.sock\ndevice:\n  type: blk\n  image: /srv/disk.raw\n  queues: 4"
    )
    page.text("A class of one's own:")
    page.example("socket: ./entropy.sock\ndevice:\n  type: ./entropy.py:Entropy")
    _see_also(page, ("vuproc", 1))
    return page


def verbs(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of a parser's verbs, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().split()).partition(" ")[2]


def _entries(page: Page, parser: argparse.ArgumentParser) -> None:
    """The options and arguments of a parser, but not its verbs."""
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help is argparse.SUPPRESS:
            continue
        text = formatter._expand_help(action) if action.help else ""
        page.entry(_head(action), text)


def _head(action: argparse.Action) -> str:
    if action.metavar is not None:
        taken = str(action.metavar)
    elif action.choices is not None:
        taken = "|".join(map(str, action.choices))
    else:
        taken = action.dest.upper()
    if not action.option_strings:
        return italic(taken)
    flags = ", ".join(map(bold, action.option_strings))
    return flags if action.nargs == 0 else f"{flags} {italic(taken)}"


def _keys(page: Page, struct: type[msgspec.Struct], without: Container[str] = ()) -> None:
    for row in reference.rows(struct, without):
        page.entry(bold(row.key), reference.described(row))


def _see_also(page: Page, *others: tuple[str, int]) -> None:
    page.heading("SEE ALSO")
    page.text(", ".join(f"{name}({section})" for name, section in others))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name} FOLDER")
    for written in write(Path(sys.argv[1])):
        print(written)
