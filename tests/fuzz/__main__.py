"""Fuzzing by coverage: `python -m tests.fuzz session [options of libFuzzer] [folders]`.

Needs atheris (the extra `fuzz`). What it finds is written to a file whose name is shown; give that
file's name in place of a folder to see it happen again.
"""

from __future__ import annotations

import sys

import atheris


def main(arguments: list[str]) -> int:
    """Runs until libFuzzer has enough, and does not return then."""
    with atheris.instrument_imports(include=["vuproc.vhost_user", "vuproc.spec"]):
        from tests.fuzz.targets import TARGETS

    if len(arguments) < 2 or arguments[1] not in TARGETS:
        print(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [options of libFuzzer]")
        return 2
    atheris.Setup([arguments[0], *arguments[2:]], TARGETS[arguments[1]].run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
