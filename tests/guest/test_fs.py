"""Linux's own driver of the file system device, on a directory of the host."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from tests.guest.deaths import WorkerKiller, meanwhile
from vuproc.spec.virtio import DeviceId
from vuproc.testing import Served, serve
from vuproc.testing.vms import VhostUserDevice, boot_qemu, boot_uml
from vuproc.testing.vms.linux import LinuxGuest, Report

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
]

FILES = 40
REQUESTS = 1

# What is there is read; what is written is looked at by the host. Workers die meanwhile.
SCRIPT = f"""
mount -t virtiofs share /mnt
cd /mnt
say sums $(find tree -type f | sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
say count $(find tree | wc -l)
say link $(readlink tree/link)
say modes $(stat -c %a:%u:%g tree/5 tree/below)
say hard $(stat -c %h tree/0)
say outside $(cat out 2>&1 || true)
say up $(ls up/.. | tr '\\n' ' ')
say writing yes
mkdir new new/a new/b
n=0
while [ $n -lt {FILES} ]; do
    echo "content $n" >new/a/$n
    cat new/a/$n >>new/all
    mv new/a/$n new/b/$n
    [ $((n % 4)) -ne 0 ] || ln new/b/$n new/a/hard$n
    [ $((n % 4)) -ne 1 ] || ln -s ../b/$n new/a/soft$n
    [ $((n % 4)) -ne 2 ] || rm new/b/$n
    n=$((n + 1))
done
say written yes
dd if=/dev/urandom of=/tmp/large bs=65536 count=40 2>/dev/null
cp /tmp/large new/large
say large $(sha256sum </tmp/large | cut -d' ' -f1)
exec 3<>new/open
rm new/open
echo "still here" >&3
say deleted yes
cat </proc/self/fd/3 >new/kept
until [ -e enough ]; do cp /tmp/large new/again; rm new/again; done
exec 3>&-
truncate -s 1000 new/all
chmod 4711 new/b/0
chown 17:18 new/b/0
touch -d @1234567890 new/b/1
mkfifo new/pipe
mkdir new/deep; cd new/deep
for d in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mkdir $d; cd $d; done
echo bottom >file
cd /mnt
mkdir gone; touch gone/x gone/y; rm -r gone
say listed $(find new | wc -l)
sync
cd /
umount /mnt
mount -t virtiofs share /mnt
say again $(sha256sum </mnt/new/large | cut -d' ' -f1)
umount /mnt
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    root = tmp_path / "shared"
    below = root / "tree" / "below"
    below.mkdir(parents=True)
    for number in range(FILES):
        (root / "tree" / f"{number}").write_bytes(os.urandom(number * 1000))
    (below / "deep").write_bytes(os.urandom(300_000))
    (below / ("n" * 255)).write_text("long name")
    os.chmod(root / "tree" / "5", 0o640)
    os.chown(root / "tree" / "5", 5, 6)
    os.link(root / "tree" / "0", below / "hard")
    (root / "tree" / "link").symlink_to("below/deep")
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    return root


def sums(root: Path) -> str:
    """What the guest makes of all files below `tree`."""
    files = sorted(
        os.fsencode(path.relative_to(root))
        for path in (root / "tree").rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    lines = [
        f"{hashlib.sha256((root / os.fsdecode(name)).read_bytes()).hexdigest()}  ".encode() + name
        for name in files
    ]
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def played(guest: LinuxGuest, served: Served, root: Path) -> Report:
    """The script, with workers that die all the time, and at some moments in any case."""
    killer = WorkerKiller(served.socket)
    with meanwhile(killer):
        for moment in ("writing", "written", "deleted"):
            guest.wait_for(moment)
            served.wait_worker(REQUESTS, other_than=served.kill_worker(REQUESTS))
        killer.await_deaths()
        (root / "enough").touch()
        report = guest.finish()
    print(f"{killer.kills.total()} workers were killed")
    assert killer.kills[REQUESTS]
    return report


def check(said: Report, root: Path, served: Served) -> None:
    values = said.values
    assert values["sums"] == sums(root)
    assert int(values["count"]) == 1 + len(list((root / "tree").rglob("*")))
    assert values["link"] == "below/deep"
    assert values["modes"].split() == ["640:5:6", "755:0:0"]
    assert values["hard"] == "2"
    # The guest follows links by itself, in its own tree.
    assert "No such file" in values["outside"]
    assert "mnt" in values["up"].split() and "secret" not in values["up"]
    new = root / "new"
    left = [number for number in range(FILES) if number % 4 != 2]
    assert sorted(os.listdir(new / "b")) == sorted(map(str, left))
    for number in left:
        assert (new / "b" / f"{number}").read_text() == f"content {number}\n"
    for number in range(FILES):
        if number % 4 == 0:
            assert (new / "a" / f"hard{number}").samefile(new / "b" / f"{number}")
        elif number % 4 == 1:
            assert os.readlink(new / "a" / f"soft{number}") == f"../b/{number}"
    whole = "".join(f"content {number}\n" for number in range(FILES)).encode()
    assert (new / "all").read_bytes() == whole[:1000].ljust(1000, b"\0")
    assert hashlib.sha256((new / "large").read_bytes()).hexdigest() == values["large"]
    assert values["again"] == values["large"]
    assert (new / "kept").read_text() == "still here\n"
    changed = (new / "b" / "0").stat()
    assert (changed.st_uid, changed.st_gid, stat.S_IMODE(changed.st_mode)) == (17, 18, 0o711)
    assert (new / "b" / "1").stat().st_mtime == 1234567890
    assert stat.S_ISFIFO((new / "pipe").stat().st_mode)
    assert (new / "deep" / "/".join(map(str, range(1, 21))) / "file").read_text() == "bottom\n"
    assert int(values["listed"]) == 1 + len(list(new.rglob("*")))
    assert not (root / "gone").exists() and not (new / "open").exists()
    assert served.status().queues[REQUESTS].restarts > 3
    assert not [line for line in served.lines if "ERROR" in line]


def test_uml_reads_and_writes_while_workers_die(shared: Path) -> None:
    description = {"type": "fs", "tag": "share", "directory": str(shared), "readonly": False}
    with serve(description) as served:
        devices = {served.socket: DeviceId.FS}
        with boot_uml(devices, script=SCRIPT, modules=("virtiofs",)) as guest:
            check(played(guest, served, shared), shared, served)


def test_qemus_guest_reads_and_is_refused_to_write(shared: Path) -> None:
    script = """
mount -t virtiofs share /mnt
cd /mnt
say reading yes
say sums $(find tree -type f | sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
say outside $(cat out 2>&1 || true)
say refused $(touch new 2>&1 || true)
say removed $(rm tree/1 2>&1 || true)
"""
    description = {"type": "fs", "tag": "share", "directory": str(shared), "request_queues": 2}
    with serve(description, queue_size=1024) as served:
        device = VhostUserDevice(
            socket=served.socket,
            driver="vhost-user-fs-pci",
            properties={"tag": "share", "num-request-queues": 2, "queue-size": 1024},
        )
        modules = ("virtio_pci", "virtiofs")
        with boot_qemu([device], script=script, modules=modules) as guest:
            guest.wait_for("reading")
            served.wait_worker(REQUESTS, other_than=served.kill_worker(REQUESTS))
            said = guest.finish().values
    assert said["sums"] == sums(shared)
    assert "No such file" in said["outside"]
    assert "Read-only file system" in said["refused"]
    assert "Read-only file system" in said["removed"]
    assert not [line for line in served.lines if "ERROR" in line]


def test_a_guest_with_two_cpus_has_a_queue_for_each(shared: Path) -> None:
    """As Linux has it from 6.11 on. What one queue's worker has made is there for the other's."""
    script = """
mount -t virtiofs share /mnt
cd /mnt
say reading yes
for cpu in 1 2; do
    taskset $cpu sh -c "mkdir made$cpu; cp tree/[0-9]* made$cpu/"
    taskset $cpu cat made$cpu/* | sha256sum >/tmp/$cpu
done
say same $(cmp /tmp/1 /tmp/2 && echo yes)
say there $(taskset 2 cat made1/* | sha256sum | cmp - /tmp/1 && echo yes)
say removed $(taskset 1 rm -r made2 && taskset 2 ls | grep -c made)
"""
    description = {"type": "fs", "tag": "share", "directory": str(shared), "readonly": False}
    with serve(description, request_queues=2, queue_size=1024) as served:
        device = VhostUserDevice(
            socket=served.socket,
            driver="vhost-user-fs-pci",
            properties={"tag": "share", "num-request-queues": 2, "queue-size": 1024},
        )
        with boot_qemu([device], script=script, modules=("virtiofs",), suite="trixie") as guest:
            guest.wait_for("reading")
            for queue in (REQUESTS, REQUESTS + 1):
                served.wait_worker(queue, other_than=served.kill_worker(queue))
            said = guest.finish().values
        queues = served.status().queues
    assert (said["same"], said["there"], said["removed"]) == ("yes", "yes", "1")
    assert all(queues[queue].requests > 50 for queue in (REQUESTS, REQUESTS + 1)), queues
    assert not [line for line in served.lines if "ERROR" in line]
