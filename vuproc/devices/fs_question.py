"""Whether fsspec has what a URL names: asked of a program, since no master imports it.

As a program, `python -m vuproc.devices.fs_question URL`, it says why not, if it has not. Nobody is
connected to: what is there is for the worker to find.
"""

from __future__ import annotations

import re
import sys

from vuproc import inquiries
from vuproc.inquiries import Inquiry

ASK_S = 60.0
"""Seconds for the program as a whole. It waits for nobody: it imports what the URL takes."""


def why_not_had(url: str) -> str | None:
    """Why fsspec has no file system for it, in words, or None. Raises OSError."""
    inquiry = Inquiry((sys.executable, "-P", "-m", __name__, url), ASK_S, "fsspec")
    answer = inquiries.ask(inquiry)
    return None if answer.code == 0 else inquiry.reason_of(answer)


def protocols(url: str) -> list[str]:
    """Those of a URL and of what it is chained to: zip and s3 of zip::s3://a/b."""
    if "::" not in url:
        return [url.partition("://")[0] if "://" in url else "file"]
    return [_protocol(part) for part in url.split("::")]


def _protocol(part: str) -> str:
    name, mark, _ = part.partition("://")
    if mark:
        return name
    # As fsspec has it: in a chain a word alone is a protocol, and all else a path.
    return part if re.fullmatch("[a-z]+", part) else "file"


def main() -> int:
    """Import the file systems of the URL."""
    import fsspec

    for protocol in protocols(sys.argv[1]):
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError:
            print(f"fsspec has no {protocol}:", file=sys.stderr)
            return 1
        except ImportError as error:
            # It names the package, in whatever words its author found.
            print(f"{protocol}: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
