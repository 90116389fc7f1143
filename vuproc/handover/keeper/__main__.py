"""The keeper as a program: found by its folder, as it is run without vuproc's.

    python -I -S __main__.py [--hand NAME=NUMBER]... COMMAND [ARGUMENT...]
    python -I -S __main__.py --devices PATH [--devices PATH]... COMMAND [ARGUMENT...]

The first is `alone.py`, the second `fleet.py`.
"""

import os
import sys

if not __package__:
    # Behind all others: nothing here is to be found in place of Python's own.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    __package__ = "keeper"

from .descriptors import open_closed
from .error_output import ErrorOutput
from .processes import PREFIX


def main(arguments: list[str]) -> int:
    """Keep the command that the arguments are."""
    open_closed()
    handed, places = [], []
    while len(arguments) > 1 and arguments[0] in ("--hand", "--devices"):
        if arguments[0] == "--hand":
            name, _, number = arguments[1].partition("=")
            os.set_inheritable(int(number), False)
            handed.append((name, int(number)))
        else:
            places.append(arguments[1])
        arguments = arguments[2:]
    if not arguments:
        ErrorOutput(PREFIX).write(f"{PREFIX}no command to run")
        return 2
    if places:
        from .fleet import Fleet

        return Fleet(places, arguments).run()
    from .alone import KeeperAlone

    return KeeperAlone(arguments, handed).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
