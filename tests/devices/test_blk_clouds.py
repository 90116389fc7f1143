"""What a disk asks of stores whose conditions are not those of S3: Azure's, by an entity tag of its
own, and Google's, by a generation.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.devices import azure_store, google_store
from tests.devices.azure_store import Azure
from tests.devices.google_store import Google
from tests.guest.load import in_long_form

pytestmark = pytest.mark.timeout(120)

Running = Callable[[Path], AbstractContextManager[Azure | Google]]


@contextmanager
def google(_: Path) -> Iterator[Google]:
    with google_store.running() as server, google_store.gated(server) as store:
        yield store


# Azurite takes some seconds to start, where it is installed at all.
STORES = [google, *in_long_form(azure_store.running)]


@pytest.fixture(params=STORES, ids=["google", *in_long_form("azure")], scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Azure | Google]:
    with ExitStack() as stack:
        try:
            store = stack.enter_context(request.param(tmp_path_factory.mktemp("store")))
        except LookupError as error:
            pytest.skip(str(error))
        yield store


@pytest.fixture
def store(running: Azure | Google, monkeypatch: pytest.MonkeyPatch) -> Azure | Google:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def test_objects_are_exchanged_on_a_condition_read_in_parts_listed_and_deleted(
    store: Azure | Google,
) -> None:
    """By a process of its own: the library has threads and descriptors that it keeps."""
    store.put("there/before", b"somebody else's")
    command = [sys.executable, "-m", "tests.devices.store_rules", store.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert store.get("there/before") == b"somebody else's"
    assert store.get("rules/manifest.json") == b"second"
    assert [name for name in store.names() if name.startswith("rules")] == ["rules/manifest.json"]
