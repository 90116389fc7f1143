"""Programs in C that run in a guest, built when a test wants them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest


def build(source: Path, folder: Path) -> Path:
    """The program of one source file, in `folder`; skips the test where there is no compiler."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]} to build the guest's program with")
    built = folder / source.stem
    subprocess.run([*compiler, "-O2", "-Wall", "-Werror", "-o", built, source], check=True)
    return built
