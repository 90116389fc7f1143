"""How this program was started, so that it can be started in the same way from any folder.

What runs for long does so in `/`: the folder of its start may be removed, and nobody could begin
there any more. So whatever depended on that folder is made absolute, once, while it is there.
"""

from __future__ import annotations

import os
import sys


def program() -> tuple[str, ...]:
    """The interpreter, its options and this program, without the program's arguments."""
    # What follows the program is the same in both lists.
    words = list(sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])])
    if words and words[-1] == sys.argv[0] != "-c":
        words[-1] = os.path.abspath(words[-1])  # a script
    return (sys.executable, *words)


def leave_folder() -> None:
    """Go to `/`, and let modules be found where they were, here and in what is started from here.

    After that, what `program` has given does the same as before. Raises FileNotFoundError if the
    folder of the start is gone and something depends on it.
    """
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
    search = os.environ.get("PYTHONPATH", "")
    entries = [os.path.abspath(entry) for entry in search.split(os.pathsep)] if search else []
    first = _first_place()
    if first is not None and first not in entries:
        entries.insert(0, first)
    if entries:
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    os.chdir("/")


def _first_place() -> str | None:
    """The folder of the start, if modules are looked for there: with -m and -c, unless -P forbids
    it. None for `/`, where they are looked for from now on.
    """
    named = sys.argv[0] == "-c" or getattr(sys.modules["__main__"], "__spec__", None) is not None
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        return None
    return folder if named and folder != "/" and folder in sys.path[:1] else None
