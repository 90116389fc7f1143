"""Every mistake of a device's author is one line with its place, before anything is served."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vuproc import Device, loader
from vuproc.cli import main as cli
from vuproc.device_file.check import check_shared, load
from vuproc.device_file.device_class import class_problems
from vuproc.device_file.schema import device_types, schema
from vuproc.devices import BUILTIN
from vuproc.errors import ConfigErrors

HEAD = """\
from __future__ import annotations
import os
from typing import Annotated, ClassVar
import msgspec
from msgspec import Meta
from vuproc import Device, Fd, Options, shared

class Leaf(msgspec.Struct):
    number: complex

class Chain(msgspec.Struct):
    again: Chain | None = None

class Loop(msgspec.Struct):
    again: list[Loop] | None = None
    leaf: Leaf | None = None
"""
HANDLE = "def handle(self, request): pass\n"
WRONG = "  # wrong"
"""Ends the line of `bad.py` which the error has to name."""


class Folder:
    """A device file and the class Bad that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, body: str, *, options: str = "", keys: str = "") -> None:
        struct, chosen = "", ""
        if options:
            struct = f"class Mine(Options):\n{textwrap.indent(textwrap.dedent(options), '    ')}\n"
            chosen = "    options_type = Mine\n"
        self.source = (
            f"{HEAD}\n{struct}class Bad(Device):\n    device_id = 4\n{chosen}"
            f"{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        )
        (self.path / "bad.py").write_text(self.source)
        (self.path / "bad.yaml").write_text(f"socket: s\ndevice:\n  type: bad.py:Bad\n{keys}")

    @property
    def line(self) -> int:
        """The line that is marked as wrong."""
        lines = self.source.splitlines()
        (number,) = (n for n, line in enumerate(lines, 1) if line.endswith(WRONG))
        return number

    def check(self) -> list[str]:
        """The errors as they are printed."""
        try:
            check_shared(load(self.path / "bad.yaml"))
        except ConfigErrors as errors:
            return [str(error).replace(f"{self.path}/", "") for error in errors.errors]
        return []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "def handle(self): pass  # wrong",
            "handle does not take what it is called with: it is def handle(self); "
            "write def handle(self, request)",
        ),
        (
            "def handle(request): pass  # wrong",
            "handle does not take what it is called with: it is def handle(request); "
            "write def handle(self, request)",
        ),
        (
            "async def handle(self, request): yield  # wrong",
            "handle is async, which only handle may be, and without a yield; "
            "write def handle(self, request)",
        ),
        (
            "def handle(self, request): yield  # wrong",
            "handle has a yield, so that a call of it does nothing; let it return",
        ),
        ("handle = None  # wrong", "handle is None, not a method; write def handle(self, request)"),
        (
            HANDLE + "def setup(self): pass  # wrong",
            "setup does not take what it is called with: it is def setup(self); "
            "write def setup(self, queue)",
        ),
        (
            HANDLE + "def native(self, queue, more): pass  # wrong",
            "native does not take what it is called with: it is def native(self, queue, more); "
            "write def native(self, queue)",
        ),
        (
            HANDLE + "async def ring_started(self, queue): pass  # wrong",
            "ring_started is async, which only handle may be, and without a yield; "
            "write def ring_started(self, queue)",
        ),
        (
            HANDLE + "def ring_stopped(self, *, queue): pass  # wrong",
            "ring_stopped does not take what it is called with: it is "
            "def ring_stopped(self, *, queue); write def ring_stopped(self, queue)",
        ),
        (
            HANDLE + "def fail(self, request): pass  # wrong",
            "fail does not take what it is called with: it is def fail(self, request); "
            "write def fail(self, request, error)",
        ),
        (
            HANDLE + "def config_written(self, data): pass  # wrong",
            "config_written does not take what it is called with: it is "
            "def config_written(self, data); write def config_written(self, offset, data)",
        ),
        (
            HANDLE + "def features_acked(): pass  # wrong",
            "features_acked does not take what it is called with: it is def features_acked(); "
            "write def features_acked(self, features)",
        ),
        (
            HANDLE + "@staticmethod\ndef reset(self): pass  # wrong",
            "reset does not take what it is called with: it is def reset(self); "
            "write def reset(self)",
        ),
        (
            HANDLE + "def uring_files(self, queue): yield 3  # wrong",
            "uring_files has a yield, so that a call of it does nothing; let it return",
        ),
        (
            HANDLE + "num_queues = 2  # wrong",
            "num_queues is 2, not a method; write def num_queues(self)",
        ),
        (
            HANDLE + "config_space = property(lambda self: b'')  # wrong",
            "config_space is a property, not a method; write def config_space(self)",
        ),
        (
            HANDLE + "def __init__(self): super().__init__()  # wrong",
            "__init__ does not take what it is called with: it is def __init__(self); "
            "write def __init__(self, options)",
        ),
        (
            HANDLE + "def __init__(self, options): self.count = 0  # wrong",
            "__init__ keeps no options; write super().__init__(options)",
        ),
        (
            HANDLE + "def __init__(self, options): super().__init__(7)  # wrong",
            "__init__ keeps 7 for its options, not what it was given",
        ),
        (
            HANDLE + "def __init__(self, options): os.stat('/none')  # wrong",
            "__init__: FileNotFoundError: [Errno 2] No such file or directory: '/none'",
        ),
        (
            HANDLE + "def queue_groups(self): return [0, 1]  # wrong\n"
            "def num_queues(self): return 2",
            "queue_groups() is [0, 1], not a list with a tuple of queues for each worker, such as "
            "[(0, 1), (2,)]",
        ),
        (
            HANDLE + "def queue_groups(self): return 7  # wrong",
            "queue_groups() is 7, not a list with a tuple of queues for each worker, such as "
            "[(0, 1), (2,)]",
        ),
        (
            HANDLE + "def queue_groups(self): return [(0,), (1,)]  # wrong",
            "queue_groups() is [(0,), (1,)]: the device has no queue 1; its only queue is 0",
        ),
        (
            HANDLE + "def config_space(self): return {}['size']  # wrong",
            "config_space: KeyError: 'size'",
        ),
        (
            HANDLE + "def num_queues(self): raise SystemExit('none')  # wrong",
            "num_queues: SystemExit: none",
        ),
        (HANDLE + "features = 'all'  # wrong", "offered_features() is 'all': a device has bits "),
        (
            HANDLE + "resubmit = 'dorp'  # wrong",
            "resubmit is 'dorp', not run, drop or fail, nor a mapping of queues to them",
        ),
        (
            HANDLE + "resubmit = {1: 'dorp'}  # wrong",
            "resubmit is 'dorp' for queue 1, not run, drop or fail",
        ),
        (
            HANDLE + "def save_state(self): return b''  # wrong",
            "save_state is of no use without load_state",
        ),
        (
            HANDLE + "def load_state(self, data, version): pass  # wrong",
            "load_state is of no use without save_state",
        ),
        (
            HANDLE + "state_version = 0  # wrong",
            "state_version is 0, not 1 to 4294967295",
        ),
        (
            HANDLE + "resubmit = {'1': 'drop'}  # wrong",
            "resubmit names a queue '1', not 0 to 255",
        ),
        (HANDLE + "queues = 0  # wrong", "queues is 0, not 1 to 256"),
        (HANDLE + "queues = 'two'  # wrong", "queues is 'two', not 1 to 256"),
        (
            HANDLE + "largest_queue = 100  # wrong",
            "largest_queue is 100, not a power of two from 2 to 32768",
        ),
        (
            HANDLE + "largest_queue = 65536  # wrong",
            "largest_queue is 65536, not a power of two from 2 to 32768",
        ),
        (
            HANDLE + "def shared_files(self): return 5  # wrong",
            "shared_files() is of type int, not a dict of names and files",
        ),
        (
            HANDLE + "def shared_files(self): return {'ram': 5}  # wrong",
            "shared_files() has 5 for ram, not an open file such as Fd(...)",
        ),
        (
            HANDLE + "def shared_files(self): return {'a:b': open('/dev/null')}  # wrong",
            "shared_files() names a file 'a:b': a name is of ASCII letters, without a colon",
        ),
        (
            HANDLE + "def shared_files(self): return {'x' * 201: open('/dev/null')}  # wrong",
            "shared_files() names a file 'xxx",
        ),
        (
            HANDLE + "def shared_files(self): return dict.fromkeys('ab', open('/dev/null'))"
            "  # wrong",
            "shared_files() gives one file two names",
        ),
        (
            HANDLE + "def shared_files(self): return {'f': open('/none')}  # wrong",
            "shared_files: FileNotFoundError: [Errno 2] No such file or directory: '/none'",
        ),
    ],
)
def test_c10_class_that_would_fail_later(folder: Folder, body: str, expected: str) -> None:
    folder.write(body)
    (error,) = folder.check()
    assert error.startswith(f"bad.yaml:3:9: type: bad.py:{folder.line}: Bad.{expected}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "name: Nope = 1  # wrong",
            "name has an annotation that does not resolve: NameError: name 'Nope' is not defined",
        ),
        (
            "name: Annotated[str | None, Meta(max_length=3)] = None  # wrong",
            "name has a type that cannot be had: Can only set max_length on a str, bytes, or "
            "collection type - type ",
        ),
        (
            "name: int | list[int] | tuple[int, ...] = 1  # wrong",
            "name has a type that cannot be had: Type unions may not contain more than one",
        ),
        (
            "name: complex = 1j  # wrong",
            "name is of type complex, which no device file can hold",
        ),
        (
            "name: list[complex] = []  # wrong",
            "name is of type complex, which no device file can hold",
        ),
        (
            "name: Loop | None = None  # wrong",
            "name is of type complex, which no device file can hold",
        ),
        (
            "limit = 4096  # wrong",
            "limit has no annotation, so it is no option; write limit: int = ...",
        ),
        (
            "queues = 4  # wrong",
            "queues has no annotation, so it is no option; write queues: int = ...",
        ),
        (
            "limit: Annotated[int, Meta(ge=1)] = 0  # wrong",
            "limit has a default that is not of its type: Expected int >= 1",
        ),
        (
            "name: str = 7  # wrong",
            "name has a default that is not of its type: Expected str, got int",
        ),
        (
            "type: str = 'x'  # wrong",
            "type is the key type, which names the device's class",
        ),
        ("live: ClassVar = {'serail'}  # wrong", "live names serail, which is no option"),
        ("json_schema: ClassVar = []  # wrong", "json_schema is not a mapping"),
    ],
)
def test_c10_options_that_would_fail_later(folder: Folder, options: str, expected: str) -> None:
    folder.write(HANDLE, options=options)
    (error,) = folder.check()
    assert error.startswith(f"bad.yaml:3:9: type: bad.py:{folder.line}: Mine.{expected}")


def test_c10_the_built_in_devices_are_right(tmp_path: Path) -> None:
    for ref in BUILTIN.values():
        assert list(class_problems(loader.load(ref, tmp_path))) == []


def test_c10_what_is_no_option_and_no_mistake(folder: Folder) -> None:
    options = """
        LIMIT: ClassVar[int] = 3
        live = Options.live | {"name"}
        name: str = "x"
        rest: Chain | None = None
        _cache = None

        @property
        def long(self): return len(self.name)

        @staticmethod
        def kind(): return 1
    """
    body = HANDLE + "@classmethod\ndef queue_size(cls): return 64\n"
    body += "@staticmethod\ndef setup(queue): pass\ndef reset(self, *more, hard=False): pass\n"
    folder.write(body, options=options)
    assert folder.check() == []


def test_c10_options_that_are_annotated_and_not_chosen(folder: Folder) -> None:
    folder.write(f"options: Mine  # wrong\n{HANDLE}", options="name: str = 'x'")
    source = folder.source.replace("    options_type = Mine\n", "")
    (folder.path / "bad.py").write_text(source)
    folder.source = source
    assert folder.check() == [
        f"bad.yaml:3:9: type: bad.py:{folder.line}: Bad.options is of type Mine, but options_type "
        "is Options; write options_type = Mine"
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("def problems(self): return None", "Mine.problems: TypeError: 'NoneType' object is not "),
        ("def problems(self): yield self.gone", "Mine.problems: AttributeError: 'Mine' object has"),
        ("def problems(self): return ['x']", "Mine.problems: ValueError: not enough values "),
        ("def __post_init__(self): {}['a']", "Mine.__post_init__: KeyError: 'a'"),
    ],
)
def test_c10_options_whose_code_raises(folder: Folder, options: str, expected: str) -> None:
    folder.write(HANDLE, options=f"name: str = 'x'\n{options}{WRONG}")
    (error,) = folder.check()
    assert error.startswith(f"bad.yaml:3:3: bad.py:{folder.line}: {expected}")


def test_c10_error_of_a_library_is_told_at_the_authors_line(folder: Folder) -> None:
    folder.write(
        HANDLE + "def config_space(self): return self.pack()\n"
        "def pack(self):\n    import json\n    return json.loads('{')  # wrong"
    )
    (error,) = folder.check()
    assert error.startswith(
        f"bad.yaml:3:9: type: bad.py:{folder.line}: Bad.config_space: JSONDecodeError: Expecting"
    )


@pytest.mark.parametrize(
    ("method", "key", "expected"),
    [
        ("def num_queues(self): return 2", "queues: 5", "4:11: queues: Bad.num_queues() is 2"),
        (
            "def queue_size(self): return 64",
            "queue_size: 128",
            "4:15: queue_size: Bad.queue_size() is 64",
        ),
    ],
)
def test_c10_key_that_the_device_takes_no_notice_of(
    folder: Folder, method: str, key: str, expected: str
) -> None:
    folder.write(HANDLE + method, keys=f"  {key}\n")
    assert folder.check() == [f"bad.yaml:{expected} whatever this says; leave the line out"]


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("def num_queues(self): return 2 * self.options.queues + 1", "queues: 5"),
        ("def num_queues(self): return max(2, self.options.queues)", "queues: 1"),
        ("def num_queues(self): return 2", "queues: 2"),
        ("def queue_size(self): return min(64, self.options.queue_size)", "queue_size: 128"),
    ],
)
def test_c10_key_that_means_something_else_is_taken(folder: Folder, method: str, key: str) -> None:
    folder.write(HANDLE + method, keys=f"  {key}\n")
    assert folder.check() == []


@pytest.mark.parametrize(
    "body",
    [
        "async def handle(self, request): pass",
        "resubmit = {1: 'drop'}",
        "resubmit = {}",
        "def pulls(self, queue): return True",
        "queues = 2\nlargest_queue = 64",
        "state_version = 7\ndef save_state(self): pass\ndef load_state(self, data, version): pass",
    ],
)
def test_c10_what_a_class_may_say(folder: Folder, body: str) -> None:
    folder.write(body if "handle" in body else HANDLE + body)
    assert folder.check() == []


@pytest.mark.parametrize(
    ("body", "keys", "expected"),
    [
        ("queues = 2", "queues: 5", "4:11: queues: this device has 2 queues; leave the line out"),
        ("queues = 2", "queues: 2", "4:11: queues: this device has 2 queues; leave the line out"),
        ("queues = 1", "queues: x", "4:11: queues: this device has 1 queue; leave the line out"),
        (
            "largest_queue = 64",
            "queue_size: 128",
            "4:15: queue_size: the queues of this device have up to 64 entries; leave the line out",
        ),
    ],
)
def test_c10_key_of_an_option_that_the_class_has_decided_on(
    folder: Folder, body: str, keys: str, expected: str
) -> None:
    folder.write(HANDLE + body, keys=f"  {keys}\n")
    assert folder.check() == [f"bad.yaml:{expected}"]


def test_c10_what_the_class_has_decided_on_is_no_option(
    folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    named = {"bad": "bad.py:Bad"}
    monkeypatch.setattr("vuproc.loader.available", lambda: named)
    real = loader.load

    def load_here(ref: str, _base: Path) -> type[Device]:
        return real(named.get(ref, ref), folder.path)

    monkeypatch.setattr("vuproc.loader.load", load_here)
    for body, offered in (
        ("", {"queues", "queue_size"}),
        ("queues = 2", {"queue_size"}),
        ("queues = 2\nlargest_queue = 64", set()),
    ):
        folder.write(HANDLE + body)
        sys.modules.pop("bad", None)
        assert schema()["$defs"]["bad"]["properties"].keys() & {"queues", "queue_size"} == offered
        assert cli.main(["devices", "./bad.py:Bad"]) == 0
        shown = capsys.readouterr().out
        assert {key for key in ("queues", "queue_size") if f"  {key}: " in shown} == offered


def test_c10_check_closes_the_shared_files_and_leaves_locked_ones_alone(folder: Folder) -> None:
    body = "def shared_files(self): return {'a': open('/dev/null'), 'b': Fd(os.memfd_create('b'))}"
    folder.write(f"{HANDLE}{body}\n")
    before = os.listdir("/proc/self/fd")
    assert folder.check() == []
    assert os.listdir("/proc/self/fd") == before
    folder.write(f"{HANDLE}def shared_files(self): raise BlockingIOError\n")
    assert folder.check() == []


def test_c10_a_shared_file_that_is_refused_is_named_unless_it_is_in_use(folder: Folder) -> None:
    def listens_at(path: Path) -> None:
        made = f"shared.listening_socket('{path}', option='at')"
        folder.write(f"{HANDLE}def shared_files(self): return {{'s': {made}}}\n")

    listens_at(folder.path / "none" / "s")
    assert folder.check() == ["bad.yaml:3:9: type: device.at: none/s: no such file or directory"]
    taken = folder.path / "taken"
    listens_at(taken)
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(taken))
        somebody.listen()
        assert folder.check() == []
    assert folder.check() == []


def test_c10_run_refuses_with_the_same_lines(folder: Folder) -> None:
    folder.write(HANDLE + "def shared_files(self): return 5  # wrong")
    command = [sys.executable, "-m", "vuproc"]
    said = []
    for verb in ("check", "run"):
        done = subprocess.run(
            [*command, verb, "bad.yaml"],
            cwd=folder.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        said.append(done.stderr.replace(f"{folder.path}/", ""))
    assert said[0] == said[1]
    assert said[0] == (
        f"bad.yaml:3:9: type: bad.py:{folder.line}: Bad.shared_files() is of type int, "
        "not a dict of names and files\n"
    )
    assert not (folder.path / "s").exists()


def test_c10_devices_says_the_same(
    folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    folder.write("def handle(self): pass  # wrong", options="name: Nope = 1")
    assert cli.main(["devices", "./bad.py:Bad"]) == 2
    field = folder.source.splitlines().index("    name: Nope = 1") + 1
    lines = capsys.readouterr().err.replace(f"{folder.path}/", "").splitlines()
    assert [line.partition(" does not")[0].partition(" has an")[0] for line in lines] == [
        f"vuproc: ./bad.py:Bad: bad.py:{folder.line}: Bad.handle",
        f"vuproc: ./bad.py:Bad: bad.py:{field}: Mine.name",
    ]


def test_c10_the_schema_does_without_a_device_that_is_wrong(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    folder.write(HANDLE, options="name: Nope = 1")
    named = {"bad": "vuproc.devices.blk:Blk", "blk": "vuproc.devices.blk:Blk"}
    monkeypatch.setattr("vuproc.loader.available", lambda: named)
    bad = loader.load("./bad.py:Bad", folder.path)
    real = loader.load
    monkeypatch.setattr(
        "vuproc.loader.load", lambda ref, base: bad if ref == "bad" else real(ref, base)
    )
    assert list(device_types()) == ["blk"]
