"""What is wrong with an absolute path of the host that an option names, in words, or None."""

from __future__ import annotations

import os


def why_not_there(path: str) -> str | None:
    """Of what is to be there already."""
    try:
        os.stat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def why_not_made(path: str) -> str | None:
    """Of what is to be made there."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"{path}: there is no folder {folder}"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return f"{path} cannot be made: {folder} is not writable"
    return None
