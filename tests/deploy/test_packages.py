"""Each thing that `deploy/package` makes: it is made, whole, and works."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.making import BOUND_S, ROOT, make
from tests.deploy.ordinary_user import USER, ordinary_user
from vuproc.cli import main
from vuproc.devices import BUILTIN
from vuproc.testing.guest import Guest

pytestmark = pytest.mark.timeout(BOUND_S + 600)

SECTOR = 512
CACHE = Path(os.environ.get("VUPROC_CACHE") or ROOT / ".cache")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the source distribution and its wheel are."""
    folder = tmp_path_factory.mktemp("dist")
    assert "works" in make("wheel", folder)
    return folder


def only(folder: Path, pattern: str) -> Path:
    """The one file of that name."""
    (found,) = folder.glob(pattern)
    return found


def test_the_source_distribution_has_all_that_a_wheel_is_built_of_and_no_more(dist: Path) -> None:
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {".py", ".pyi", ".pyx", ".pxd", ".h", ".typed"}
    ours = {path for path in (ROOT / "vuproc").rglob("*") if path.suffix in sources}
    assert len(ours) > 500
    assert {path.relative_to(ROOT).as_posix() for path in ours} <= names
    # What is made of them is made anew.
    assert not [name for name in names if name.endswith((".so", ".html"))]
    # Neither tests nor docs, which want more than a wheel does, and one another.
    others = {name for name in names if name and not name.startswith("vuproc")}
    assert others == {
        *("LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"),
    }


def test_the_wheel_has_what_devices_and_native_devices_are_written_with(dist: Path) -> None:
    with zipfile.ZipFile(only(dist, "*manylinux*.whl")) as archive:
        names = archive.namelist()
        metadata = archive.read(only_of(names, "METADATA")).decode()
        programs = archive.read(only_of(names, "entry_points.txt")).decode()
        natives = [archive.read(name) for name in names if name.endswith(".so")]
    for part in ("py.typed", "shm/native.pxd", "shm/atomics.h", "shm/ring.pyi"):
        assert f"vuproc/{part}" in names
    assert "Provides-Extra: completion" in metadata
    # As in Python itself, whose flags those of a package replace: its headers are full of these.
    assert len(natives) > 30
    assert not any(b"__assert_fail" in native for native in natives)
    assert all(f"vuproc-{name} = " in programs for name in BUILTIN)


def only_of(names: list[str], ending: str) -> str:
    (found,) = (name for name in names if name.endswith(ending))
    return found


def test_the_recipe_makes_wheels_of_each_python_and_machine(dist: Path) -> None:
    """As far as it can be asked here: it runs in containers of a registry."""
    answer = subprocess.run(
        [CACHE / "packaging" / "bin" / "cibuildwheel", "--print-build-identifiers", ROOT],
        env={**os.environ, "CIBW_PLATFORM": "linux"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert set(answer.stdout.split()) == {
        f"cp3{minor}-manylinux_{machine}"
        for minor in (11, 12, 13, 14)
        for machine in ("x86_64", "aarch64")
    }


ISA_SETUP = """\
from setuptools import Extension, setup

link = ["-Wl,-z,x86-64-v2"]
setup(name="isa", version="1", ext_modules=[Extension("isa", ["isa.c"], extra_link_args=link)])
"""
ISA_MODULE = """\
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "isa"};

PyMODINIT_FUNC PyInit_isa(void) { return PyModule_Create(&module); }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it is about x86-64")
def test_the_recipe_makes_wheels_for_all_of_x86_64(dist: Path, tmp_path: Path) -> None:
    """By compilation, and past what the image's start files say of whatever is linked with them."""
    recipe = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    (override,) = recipe["overrides"]
    assert override["select"] == "*-manylinux_x86_64"
    assert override["environment"]["CFLAGS"].split() == ["-g0", "-march=x86-64"]
    (tmp_path / "setup.py").write_text(ISA_SETUP)
    (tmp_path / "isa.c").write_text(ISA_MODULE)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    subprocess.run([*pip, *build, tmp_path], check=True, timeout=300)
    path = f"{CACHE / 'packaging' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    places = {"dest_dir": tmp_path / "repaired", "wheel": only(tmp_path, "*.whl")}

    def repaired(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command.format(**places).split(),
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )

    refused = repaired("auditwheel repair -w {dest_dir} {wheel}")
    assert refused.returncode != 0 and "ISA extensions" in refused.stderr
    done = repaired(override["repair-wheel-command"])
    assert done.returncode == 0, done.stderr
    only(tmp_path / "repaired", "*manylinux*.whl")


def test_a_debian_package_is_made_and_serves_and_lintian_has_nothing_to_say(
    tmp_path: Path,
) -> None:
    said = make("deb", tmp_path)
    assert not [line for line in said.splitlines() if line.startswith(("E:", "W:"))]
    assert " works\n" in said or os.geteuid() != 0
    assert only(tmp_path, "*.dsc").stat().st_size > 0
    package = next(path for path in tmp_path.glob("vuproc_*.deb"))
    listed = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True
    )
    listing = tmp_path / "files.tar"
    listing.write_bytes(listed.stdout)
    with tarfile.open(listing) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    for name in main.PROGRAMS:
        assert f"usr/bin/{name}" in names
        assert f"usr/share/man/man1/{name}.1.gz" in names
        assert f"usr/share/bash-completion/completions/{name}" in names
        assert f"usr/share/zsh/vendor-completions/_{name}" in names
        assert f"usr/share/fish/vendor_completions.d/{name}.fish" in names
    assert "usr/share/man/man5/vuproc-device-file.5.gz" in names
    assert "usr/share/qemu/vhost-user/50-vuproc-blk.json" in names
    for unit in (ROOT / "deploy" / "systemd").glob("*.s*"):
        assert f"lib/systemd/system/{unit.name}" in names
    for drop_in in (ROOT / "deploy" / "systemd" / "drop-ins").iterdir():
        assert f"usr/share/doc/vuproc/examples/drop-ins/{drop_in.name}" in names


def test_it_is_compiled_for_aarch64_without_a_warning_and_loads_there(tmp_path: Path) -> None:
    said = make("arm64", tmp_path)
    only(tmp_path, "*-linux_aarch64.whl")
    if "it is not tried" not in said:
        assert "native modules of aarch64 are loaded\n" in said
        assert "/tmp/disk.yaml: ok: blk, 2 queues" in said


ENGINE = "podman"
STORE = ("--storage-driver", "vfs", *(("--runtime", "runc") if shutil.which("runc") else ()))
"""Layers are plain folders, and runc takes control groups of both versions at a time (crun does
not): what a machine that is itself a container may have.
"""


@pytest.fixture(scope="module")
def image(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command before the arguments of the image's entry point."""
    if shutil.which(ENGINE) is None:
        pytest.skip("there is no podman: apt-get install podman runc")
    make("container", dist)
    store = tmp_path_factory.mktemp("images")
    engine = [
        *(ENGINE, "--root", str(store / "root"), "--runroot", str(store / "run")),
        *STORE,
    ]
    archive = only(dist, "*-oci.tar")
    done = subprocess.run(
        [*engine, "load", "--quiet", "--input", archive],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    name = done.stdout.split()[-1]
    options = [
        *("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"),
        *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024"),
    ]
    yield [*engine, *options, name]
    subprocess.run([*engine, "rmi", "--all", "--force"], stdout=subprocess.DEVNULL, check=True)


def with_options(image: list[str], *options: str) -> list[str]:
    """The command with further options of the engine."""
    return [*image[:-1], *options, image[-1]]


def test_an_image_has_no_shell_and_no_root_and_serves(image: list[str]) -> None:
    smoke = ROOT / "deploy" / "packaging" / "smoke.py"
    command = with_options(
        image, "--volume", f"{smoke}:/smoke.py:ro", "--entrypoint", "/opt/vuproc/bin/python"
    )
    done = subprocess.run(
        [*command, "/smoke.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert " works\n" in done.stdout, done.stdout + done.stderr
    look = "import os; print(os.getuid(), os.path.exists('/bin/sh'), os.path.exists('/usr/bin/sh'))"
    done = subprocess.run(
        [*command, "-c", look], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["65532", "False", "False"]


@contextmanager
def serving(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The container, once it serves."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr is not None
        said = ""
        try:
            while "serving" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            yield process
        finally:
            process.terminate()
            rest = process.stderr.read()
            assert process.wait(120) == 0, said + rest


def test_a_front_end_outside_shares_its_memory_by_descriptor_alone(
    image: list[str], tmp_path: Path
) -> None:
    """A folder with the socket is all that host and container have in common, beside the image."""
    run, etc = tmp_path / "run", tmp_path / "etc"
    for folder in (run, etc):
        folder.mkdir()
        os.chown(folder, 65532, 65532)
    disk = run / "disk.raw"
    disk.write_bytes(bytes(range(256)) * 64)
    os.chown(disk, 65532, 65532)
    (etc / "disk.yaml").write_text(
        json.dumps(
            {
                "socket": "/run/vuproc/disk.sock",
                "device": {"type": "blk", "image": "/run/vuproc/disk.raw", "queues": 2},
            }
        )
    )
    command = with_options(
        image, "--volume", f"{run}:/run/vuproc", "--volume", f"{etc}:/etc/vuproc:ro"
    )
    with serving(command), Guest(run / "disk.sock", queues=2) as guest:
        for queue in range(2):
            done = guest.do(queue, [bytes(16)], [SECTOR, 1])
            assert done.content == disk.read_bytes()[:SECTOR] + b"\0"


def test_the_seccomp_profile_lets_io_uring_be_used(image: list[str], tmp_path: Path) -> None:
    engines = Path("/usr/share/containers/seccomp.json")
    if not engines.exists():
        pytest.skip(f"there is no {engines}: apt-get install golang-github-containers-common")
    profile = tmp_path / "vuproc.json"
    with engines.open() as source, profile.open("w") as target:
        subprocess.run(
            ["python3", ROOT / "deploy" / "container" / "seccomp.py"],
            stdin=source,
            stdout=target,
            check=True,
        )
    look = "from vuproc.shm.uring import Uring; Uring(1, [0]).close(); print('there')"
    python = ("--entrypoint", "/opt/vuproc/bin/python")
    refused = subprocess.run(
        [*with_options(image, *python), "-c", look], capture_output=True, text=True, timeout=300
    )
    assert "UringUnavailable" in refused.stderr
    allowed = subprocess.run(
        [
            *with_options(image, *python, "--security-opt", f"seccomp={profile}"),
            *("-c", look),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert allowed.stdout == "there\n", allowed.stderr


def test_an_ordinary_user_makes_an_image_and_serves_a_vmm_from_it(dist: Path) -> None:
    """Rootless: by subordinate ids, with neither root nor its store of images."""
    for name in (ENGINE, "buildah", "mmdebstrap"):
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name}: apt-get install {name}")
    with ordinary_user() as user, ExitStack() as stack:
        # The process that keeps its user namespace between commands.
        stack.callback(user.run, ENGINE, *STORE, "system", "migrate", bound_s=300)
        checkout, made = user.home / "checkout", user.home / "dist"
        shutil.copytree(ROOT / "deploy", checkout / "deploy")
        shutil.copy(ROOT / "pyproject.toml", checkout)
        made.mkdir()
        shutil.copy(only(dist, "*manylinux*.whl"), made)
        user.own(checkout, made)
        done = user.run("sh", checkout / "deploy/package", "container", made, bound_s=BOUND_S)
        assert done.returncode == 0, done.stdout[-4000:]
        assert list((user.home / "tmp").iterdir()) == []
        archive = only(made, "*-oci.tar")
        assert archive.stat().st_uid == USER
        done = user.run(ENGINE, *STORE, "load", "--quiet", "--input", archive, bound_s=600)
        assert done.returncode == 0, done.stdout
        name = done.stdout.split()[-1]
        # As docs/installing.md has it.
        devices, run = user.home / "devices", user.home / "sockets"
        for folder in (devices, run):
            folder.mkdir()
        device = {"type": "blk", "ram": "1MiB", "queues": 2}
        file = {"socket": "/run/vuproc/disk.sock", "device": device}
        (devices / "disk.yaml").write_text(json.dumps(file))
        user.own(devices, run)
        command = user.command(
            *(ENGINE, *STORE, "run", "--rm", "--read-only", "--cap-drop", "all"),
            *("--security-opt", "no-new-privileges", "--network", "none"),
            *("--user", f"{USER}:{USER}", "--userns", "keep-id"),
            *("--volume", f"{devices}:/etc/vuproc:ro", "--volume", f"{run}:/run/vuproc", name),
        )
        with serving(command, cwd=user.home, env=user.environment()):
            assert (run / "disk.sock").stat().st_uid == USER
            with Guest(run / "disk.sock", queues=2) as guest:
                for queue in range(2):
                    answer = guest.do(queue, [bytes(16)], [SECTOR, 1])
                    assert answer.content == bytes(SECTOR) + b"\0"
