"""The device files of a fleet: what is in its folders, and that something has changed there."""

import ctypes
import os

SUFFIXES = (".yaml", ".yml")
"""What the name of a device file ends with in a folder; one that begins with a dot is none."""
_CHANGES = 0x8 | 0x40 | 0x80 | 0x100 | 0x200
"""IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE of inotify(7)."""
_IN_ONLYDIR = 0x01000000
_EVENT_BYTES = 1 << 16

Identity = tuple[int, int, int]
"""Of a file's content: inode, time of its last change, size."""


class Places:
    """Folders and files, by absolute paths."""

    def __init__(self, paths: list[str]) -> None:
        self.folders = [path for path in paths if os.path.isdir(path)]
        self._files = [path for path in paths if path not in self.folders]

    def files(self) -> tuple[dict[str, str], list[str]]:
        """Device files by their stems, and what is wrong with others. Raises OSError for a folder
        that cannot be read.
        """
        paths = list(self._files)
        for folder in self.folders:
            names = [name for name in os.listdir(folder) if name.endswith(SUFFIXES)]
            paths += [os.path.join(folder, each) for each in sorted(names) if each[0] != "."]
        found: dict[str, str] = {}
        wrong = []
        for path in paths:
            name = os.path.splitext(os.path.basename(path))[0]
            other = found.setdefault(name, path)
            if other != path:
                wrong.append(f"{path}: not served: {other} has the same name")
        return found, wrong


def identity(path: str) -> Identity | None:
    """None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class Watch:
    """Tells that something has changed in a folder, if the kernel does (inotify(7))."""

    def __init__(self, folders: list[str]) -> None:
        self._number = -1
        library = ctypes.CDLL(None, use_errno=True)
        try:
            number = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:
            return
        added = [
            library.inotify_add_watch(number, os.fsencode(folder), _CHANGES | _IN_ONLYDIR)
            for folder in folders
        ]
        if number >= 0 and all(each >= 0 for each in added):
            self._number = number
        elif number >= 0:
            os.close(number)

    @property
    def works(self) -> bool:
        """Whether anything will be told."""
        return self._number >= 0

    def fileno(self) -> int:
        """Readable after a change."""
        return self._number

    def take(self) -> bool:
        """Whether anything has changed; what it was is not said."""
        changed = False
        try:
            while os.read(self._number, _EVENT_BYTES):
                changed = True
        except BlockingIOError:
            pass
        return changed
