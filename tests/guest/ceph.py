"""A Ceph cluster of one monitor and one object store in memory, on the loopback, for as long as it
is wanted. Its manager is left out: images need none.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vuproc.testing.vms import clients

BOUND_S = 60.0
POOL = "disks"
CONF = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
run_dir = {folder}
admin_socket =
keyring = {folder}/$name.keyring
erasure_code_dir = {libraries}/ceph/erasure-code
plugin_dir = {libraries}/ceph
osd_class_dir = {libraries}/rados-classes
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
[mon]
log_file = {folder}/$name.log
mon_data = {folder}/mon
mon_cluster_log_file = {folder}/cluster.log
[osd]
log_file = {folder}/$name.log
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 1073741824
"""
ASK = """\
import json, sys
import rados
conf, user, command, data = sys.argv[1:]
cluster = rados.Rados(conffile=conf, rados_id=user)
cluster.connect()
code, out, error = cluster.mon_command(command, data.encode(), timeout=30)
if code:
    sys.exit(f"{command}: {error or code}")
sys.stdout.buffer.write(out)
"""


@dataclass
class Cluster:
    """A running one. `conf`: its ceph.conf, of which client.admin may do anything."""

    folder: Path
    ceph: clients.CephPrograms
    conf: Path
    osd: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that use it."""
        return {**os.environ, **self.ceph.environment}

    def run(self, program: str, *arguments: str) -> str:
        """What a program of Ceph's says."""
        done = subprocess.run(
            [self.ceph.programs / program, *arguments],
            env={**self.environment, "CEPH_CONF": str(self.conf)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout

    def rbd(self, *arguments: str) -> str:
        """What rbd(8) says."""
        return self.run("rbd", *arguments)

    def mon(self, command: dict[str, object], data: str = "") -> str:
        """What the monitor answers."""
        done = subprocess.run(
            [sys.executable, "-c", ASK, self.conf, "admin", json.dumps(command), data],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a daemon of the cluster's."""
        with Path(self.folder, f"{program}.out").open("ab") as output:
            return subprocess.Popen(
                [self.ceph.programs / program, "-c", self.conf, "-f", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(BOUND_S)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster with a pool for images. Raises ClientMissing if there is no Ceph."""
    ceph = clients.ceph()
    port, conf = _free_port(), folder / "ceph.conf"
    text = CONF.format(fsid=uuid.uuid4(), port=port, folder=folder, libraries=ceph.libraries)
    conf.write_text(text)
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    cluster = Cluster(folder, ceph, conf)
    with ExitStack() as stack:
        keys = str(folder / "mon.a.keyring")
        admin = str(folder / "client.admin.keyring")
        all_of = ("--cap", "mon", "allow *")
        cluster.run("ceph-authtool", "--create-keyring", keys, "--gen-key", "-n", "mon.", *all_of)
        more = ("--cap", "osd", "allow *")
        cluster.run("ceph-authtool", "-C", admin, "--gen-key", "-n", "client.admin", *all_of, *more)
        cluster.run("ceph-authtool", keys, "--import-keyring", admin)
        address = ("-i", "a", "--public-addr", f"v2:127.0.0.1:{port}")
        cluster.run("ceph-mon", "-c", str(conf), "--mkfs", "--keyring", keys, *address)
        stack.enter_context(_ended(cluster.start("ceph-mon", *address)))
        key = cluster.run("ceph-authtool", "--gen-print-key").strip()
        number = str(uuid.uuid4())
        cluster.mon({"prefix": "osd new", "uuid": number}, json.dumps({"cephx_secret": key}))
        (folder / "osd.0.keyring").write_text(f"[osd.0]\n\tkey = {key}\n")
        cluster.run("ceph-osd", "-c", str(conf), "-i", "0", "--mkfs", "--osd-uuid", number)
        cluster.osd = cluster.start("ceph-osd", "-i", "0")
        stack.enter_context(_ended(cluster.osd))
        cluster.mon(
            {"prefix": "osd pool create", "pool": POOL, "pg_num": 8, "autoscale_mode": "off"}
        )
        cluster.mon({"prefix": "osd pool application enable", "pool": POOL, "app": "rbd"})
        yield cluster
