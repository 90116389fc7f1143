"""A Linux guest that runs one shell script at boot and reports what it said."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vuproc.testing.vms.clients import Kernel, busybox
from vuproc.testing.vms.cpio import Archive
from vuproc.testing.vms.elf import with_libraries
from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.process import GuestProcess

# The script's lines come out behind this mark, so that the kernel's own are not taken for them.
MARK = "@ "
END = "exit "
BOOT_TIMEOUT_S = 120.0

INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do
    insmod /modules/$module || echo "{MARK}cannot load $module"
done
{{ sh -eu /script; echo "{END}$?"; }} 2>&1 | while IFS= read -r line; do echo "{MARK}$line"; done
sync
poweroff -f
"""

# What a script may use besides the programs: `say KEY VALUE...` puts a value into the report.
PRELUDE = """say() { key=$1; shift; echo "$key=$*"; }
"""


def write_initramfs(
    target: Path,
    kernel: Kernel,
    *,
    script: str,
    modules: Sequence[str] = (),
    programs: Sequence[Path] = (),
) -> None:
    """Writes a root file system with busybox, modules in load order, programs and the script."""
    archive = Archive()
    archive.character_device("/dev/console", 5, 1)
    archive.copy("/bin/busybox", busybox())
    archive.file("/init", INIT.encode(), mode=0o755)
    # The shell prefers an applet of its own to a program, but a function to both.
    named = [f'{program.name}() {{ /programs/{program.name} "$@"; }}\n' for program in programs]
    archive.file("/script", "".join([PRELUDE, *named, script]).encode())
    loaded = kernel.modules.load_order(modules)
    for name, contents in loaded.items():
        archive.file(f"/modules/{name}.ko", contents)
    archive.file("/modules/order", "\n".join(f"{name}.ko" for name in loaded).encode() + b"\n")
    for program in programs:
        _, *libraries = with_libraries(program)
        archive.copy(f"/programs/{program.name}", program)
        for library in libraries:
            archive.copy(str(library), library)
    archive.write(target)


@dataclass(frozen=True)
class Report:
    """What a script left: its lines, the values that it said and its exit status."""

    status: int
    lines: list[str]
    values: Mapping[str, str] = field(default_factory=dict)


class LinuxGuest(Ending):
    """A running guest. A context manager: at its end the guest is dead and its files are removed.

    `command` makes the command line from the directory for the guest's files and the path of
    its initramfs.
    """

    def __init__(
        self,
        kernel: Kernel,
        command: Callable[[Path, Path], Sequence[str | Path]],
        *,
        script: str,
        modules: Sequence[str],
        programs: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vuproc-guest-")
        try:
            home = Path(self._directory.name)
            initramfs = home / "initramfs.cpio"
            write_initramfs(initramfs, kernel, script=script, modules=modules, programs=programs)
            self.process = GuestProcess(command(home, initramfs), env)
        except BaseException:
            self._directory.cleanup()
            raise

    def kill(self) -> None:
        """Ends the guest at once, as a host would that loses power over it (SIGKILL)."""
        try:
            self.process.kill()
        finally:
            self._directory.cleanup()

    def wait_for(self, text: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """The script's next line that starts with `text`; `GuestFailed` if it ends before."""

        def wanted(line: str) -> bool:
            if line.startswith(MARK + END):
                raise GuestFailed(f"the script ended before it said {text!r}", self.process.lines)
            return line.startswith(MARK + text)

        line = self.process.wait_for(wanted, timeout_s, f"the script to say {text!r}")
        return line.removeprefix(MARK)

    def said(self, text: str) -> bool:
        """Whether the script has said a line that starts with `text`; does not wait for it."""
        self.process.take_in()
        return any(line.startswith(MARK + text) for line in self.process.lines)

    def finish(self, timeout_s: float = BOOT_TIMEOUT_S) -> Report:
        """Waits for the power to go off. `GuestFailed` if the script's status was not 0."""
        self.process.wait(timeout_s)
        said = [line.removeprefix(MARK) for line in self.process.lines if line.startswith(MARK)]
        ends = [line for line in said if line.startswith(END)]
        if not ends:
            raise GuestFailed("the guest ended before its script did", self.process.lines)
        status = int(ends[-1].removeprefix(END))
        if status != 0:
            raise GuestFailed(f"the guest's script failed with status {status}", self.process.lines)
        values = dict(line.split("=", 1) for line in said if "=" in line)
        return Report(status, [line for line in said if not line.startswith(END)], values)
