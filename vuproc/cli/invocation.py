"""How this program was started, so that it can be started in the same way from any folder.

What runs for long does so in `/`: the folder of its start may be removed, and nobody could begin
there any more. So whatever depended on that folder is made absolute, once, while it is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from zipimport import zipimporter


def program() -> tuple[str, ...]:
    """The interpreter, its options and this program, without the program's arguments.

    Raises FileNotFoundError if the folder of the start is gone and was needed.
    """
    # What follows the program is the same in both lists.
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    if words and words[-1] == sys.argv[0] != "-c":
        return (sys.executable, *words[:-1], os.path.abspath(words[-1]))  # a script
    if not _found_here():
        return (sys.executable, *words)
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    # From a checkout, by -m or -c: elsewhere its name says nothing, and its file does.
    return (sys.executable, *_args_from_interpreter_flags(), str(_PACKAGE / "__main__.py"))


def leave_folder() -> None:
    """Go to `/`, and let modules be found where they were, here and in what is started from here.

    Raises FileNotFoundError if the folder of the start is gone and was needed.
    """
    sys.path[:] = [entry if _is_word(entry) else os.path.abspath(entry) for entry in sys.path]
    search = os.environ.get("PYTHONPATH")
    if search:
        entries = [os.path.abspath(entry) for entry in search.split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    os.chdir("/")


def _is_word(entry: str) -> bool:
    """Whether an entry of `sys.path` is no path but what the hook of some package goes by, as that
    of one that was installed to be edited.
    """
    for hook in sys.path_hooks:
        if hook is zipimporter or hook.__qualname__.startswith("FileFinder."):
            continue
        try:
            hook(entry)
        except ImportError:
            continue
        return True
    return False


_PACKAGE = Path(os.path.abspath(__file__)).parents[1]


def _found_here() -> bool:
    """Whether this package was found only because the start was in its folder."""
    if sys.flags.safe_path or not sys.path:
        return False
    folder = str(_PACKAGE.parent)
    return os.path.abspath(sys.path[0]) == folder and folder not in sys.path[1:]
