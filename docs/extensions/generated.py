"""What pages have from the source, where they say `<!-- from the source: NAME -->`."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from sphinx.application import Sphinx

from vuproc.cli.hint import HintError, hint
from vuproc.cli.main import CLIENTS, make_parser
from vuproc.cli.reference import Row, rows
from vuproc.device_file.check import load as load_file
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.model import File, Sandbox, Socket
from vuproc.devices import BUILTIN
from vuproc.loader import load
from vuproc.spec.vhost_user import BACK_END, FRONT_END, MessageSpec, MessageTable, Reply

MARK = re.compile(r"<!-- from the source: ([\w-]+) -->")
DOCS = Path(__file__).parents[1]
COLUMNS = 84

REPLIES: Mapping[Reply, str] = {
    Reply.ACK: "acknowledged",
    Reply.OWN: "its own",
    Reply.OWN_IF_LOG_SHMFD: "its own, with `LOG_SHMFD`",
}


# ---- the command line ----------------------------------------------------------------------------


def command_line() -> str:
    """Each verb of the command, from its parser."""
    parser = make_parser()
    parts = []
    for name, verb in _verbs(parser).items():
        parts += [f"## `vuproc {name}`", _plain(verb.description), _usage(verb)]
        parts += [*_arguments(verb), _block(verb.epilog)]
    return "\n\n".join(filter(None, parts))


def _verbs(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _usage(parser: argparse.ArgumentParser) -> str:
    words = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    lines = textwrap.wrap(words, COLUMNS, subsequent_indent="    ", break_on_hyphens=False)
    return _block("\n".join(lines))


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    lines = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        name = str(action.metavar or "|".join(action.choices or ()) or action.dest)
        value = "" if action.nargs == 0 else f" {name}"
        shown = ", ".join(f"`{each}{value}`" for each in action.option_strings) or f"`{name}`"
        lines.append(f"* {shown}: {_plain(action.help or '')}".removesuffix(": "))
    if lines:
        yield "\n".join(lines)


def _plain(text: str | None) -> str:
    """Text of a terminal as Markdown: what would be markup is none, but for code."""
    parts = (text or "").split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _block(text: str | None) -> str:
    return f"```text\n{text.strip()}\n```" if text else ""


# ---- how clients attach a device -----------------------------------------------------------------


def hints() -> str:
    """What `vuproc hint` prints of a disk, for each client. The device file is that of the page."""
    page = (DOCS / "attaching.md").read_text(encoding="utf-8")
    content = page.partition("```yaml\n")[2].partition("```")[0]
    file = load_file("/etc/vuproc/disk.yaml", content.encode(), look=False)
    parts = []
    for client in CLIENTS:
        try:
            said = _block(hint(client, file))
        except HintError as error:
            said = f"Refused for this device: {_plain(str(error))}."
        parts += [f"## `vuproc hint {client}`", said]
    return "\n\n".join(parts)


# ---- the options ---------------------------------------------------------------------------------


def all_options() -> str:
    """Every key of a device file: what it takes, its default, and the page that describes it."""
    tables: list[tuple[str, str, Sequence[Row]]] = [
        ("The file", "device-file.md#keys-of-the-file", rows(File)),
        ("`socket`", "device-file.md#socket-as-a-mapping", rows(Socket)),
        ("`sandbox`", "device-file.md#sandbox", rows(Sandbox)),
    ]
    for name in BUILTIN:
        device = load(name, Path())
        options: type[msgspec.Struct] = device.options_type
        tables.append((f"`{name}`", f"devices/{name}.md", rows(options, fixed_options(device))))
    parts = []
    for title, page, found in tables:
        parts += [f"## {title}", f"[Described here]({page}).", _table(found)]
    return "\n\n".join(parts)


def _table(found: Sequence[Row]) -> str:
    lines = ["| key | takes | default |", "|---|---|---|"]
    for row in found:
        default = "required" if row.required else f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.key}` | {_short(row.takes)} | {default} |")
    return "\n".join(lines)


def _short(takes: str) -> str:
    """A long list of words is in the description."""
    return takes if len(takes) <= COLUMNS else f"{takes[: COLUMNS - 8].rpartition(',')[0]}, ..."


# ---- the messages --------------------------------------------------------------------------------


def messages() -> str:
    """Both message tables, as the codec has them."""
    parts = []
    for title, table in ("From the front-end", FRONT_END), ("From the back-end", BACK_END):
        parts += [f"## {title}", _messages(table)]
    return "\n\n".join(parts)


def _messages(table: MessageTable) -> str:
    lines = ["| | name | payload | descriptors | reply | waits |", "|--:|---|---|---|---|---|"]
    for row in table:
        cells = [str(row.number), f"`{row.name}`", _payload(row), _count(row.fds), _reply(row)]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row.barrier else ''} |")
    return "\n".join(lines)


def _payload(row: MessageSpec) -> str:
    return "" if row.payload.name == "nothing" else f"`{row.payload.name}`"


def _count(fds: tuple[int, int]) -> str:
    fewest, most = fds
    return "" if most == 0 else str(most) if fewest == most else f"{fewest} to {most}"


def _reply(row: MessageSpec) -> str:
    if row.reply not in REPLIES:
        return str(row.reply.name).lower()
    fds = _count(row.reply_fds)
    return REPLIES[row.reply] + (f", with {fds} descriptor" if fds else "")


GENERATORS: Mapping[str, Callable[[], str]] = {
    "command-line": command_line,
    "all-options": all_options,
    "messages": messages,
    "hints": hints,
}


def filled(text: str) -> str:
    """A page with what its marks ask for. Raises KeyError of an unknown mark."""
    return MARK.sub(lambda mark: GENERATORS[mark[1]](), text)


def _fill(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = filled(content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
