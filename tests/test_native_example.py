"""The example of a native device: built as its author would, and served by `module:Class`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vuproc.testing.serve import serve

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "native-device"
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built package."""
    folder = tmp_path_factory.mktemp("example")
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)
    (source / "dist").mkdir()
    # An editable install of vuproc is seen by Python, and not by Cython, which looks for the files.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def stream(seed: int, count: int) -> bytes:
    """splitmix64."""
    mask = (1 << 64) - 1
    made = b""
    while len(made) < count:
        seed = seed + 0x9E3779B97F4A7C15 & mask
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        made += (z ^ z >> 31).to_bytes(8, "little")
    return made[:count]


def test_serves_what_its_author_wrote(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    device = {"type": "fast_entropy:Entropy", "seed": 42}
    with serve(device) as served, served.guest() as guest:
        assert guest.do(0, in_=[64]).content == stream(42, 64)
        # Begun with the next word, several pieces and many requests of a batch.
        expected = stream(42, 64 + 8 * 2 * 50)[64:]
        tokens = [guest.submit(0, in_=[3, 5]) for _ in range(50)]
        pieces = [guest.wait(token).content for token in tokens]
        assert all(len(piece) == 8 for piece in pieces)
        assert pieces[0] == expected[:3] + expected[8:13]


def test_takes_the_kernels_bytes_without_a_seed(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    with serve({"type": "fast_entropy:Entropy"}) as served, served.guest() as guest:
        first, second = (guest.do(0, in_=[32]).content for _ in range(2))
        assert len(first) == len(second) == 32
        assert first != second
