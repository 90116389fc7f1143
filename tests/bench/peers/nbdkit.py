"""nbdkit with plugins in three languages, which are met over NBD and not over a virtqueue.

A request then is a message on a Unix socket and its data goes through that socket: that is what
a user of such a plugin gets, and it is stated beside the figures. Each queue is a connection.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.backends import Missing, Running, Unfit, child
from tests.bench.peers import cargo
from tests.bench.work import Case, Store

_IN_PYTHON = Path(__file__).with_name("nbdkit_disk.py")
_IN_RUST = Path(__file__).with_name("nbdkit_rust")


class Nbdkit:
    """`file`: its plugin in C; `rust` and `python`: small disks in these."""

    protocol = "nbd"

    def __init__(self, plugin: str) -> None:
        self.name = self.family = f"nbdkit {plugin}"
        self._plugin = plugin

    def check(self, case: Case) -> None:
        if shutil.which("nbdkit") is None:
            raise Missing("there is no nbdkit here")
        plugin = self._rust() if self._plugin == "rust" else self._plugin
        dumped = subprocess.run(
            ["nbdkit", plugin, "--dump-plugin"], capture_output=True, check=False
        )
        if dumped.returncode:
            raise Missing(f"nbdkit has no {self._plugin} plugin here")
        if case.store is Store.DIRECT or case.work.sums:
            raise Unfit("its plugins do no such thing")
        if case.store is Store.NULL and self._plugin != "file":
            raise Unfit("nbdkit null stands for all of them")

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        path = directory / f"nbdkit-{self._plugin}.sock"
        if image is None:
            plugin = ["null", f"size={case.span}"]
        elif self._plugin == "python":
            plugin = ["python", f"script={_IN_PYTHON}", f"file={image}"]
        elif self._plugin == "rust":
            plugin = [str(self._rust()), f"file={image}"]
        else:
            plugin = ["file", f"file={image}"]
        server = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(path)]
        with child([*server, *plugin], path) as running:
            yield running

    @staticmethod
    def _rust() -> Path:
        return cargo.built(_IN_RUST, "libnbdkit_peer.so")
