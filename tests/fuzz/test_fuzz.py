"""Codec and session hold whatever bytes are made of their seeds.

With VUPROC_LONG=1 atheris makes them, guided by the coverage; where it cannot be had that is said,
and they are drawn at random as in the short form, only more of them.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.grammar import ROWS, conversation, said
from tests.fuzz.session_target import Conversation
from tests.fuzz.targets import TARGETS, changed
from vuproc.spec.vhost_user import FRONT_END

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
GUIDED_S = int(os.environ.get("VUPROC_FUZZ_S", "300"))
"""Seconds for each target that is guided by its coverage."""
AT_RANDOM = {"wire": 4000, "session": 1500}
MORE = 50
"""Times as many in the long form without atheris."""
NOT_SERVED = {
    "SET_VRING_ENDIAN",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
}
"""Messages that are always refused. One that is served from now on needs a seed of its own."""
ROOT = Path(__file__).parents[2]

by_target = pytest.mark.parametrize("name", sorted(TARGETS))


@by_target
def test_every_seed_holds(name: str) -> None:
    for seed, data in TARGETS[name].seeds.items():
        try:
            TARGETS[name].run(data)
        except BaseException as error:
            error.add_note(f"seed {seed!r}")
            raise


def test_the_seeds_say_what_they_are_to_say() -> None:
    """Bytes and messages belong together; rings do start, and each message is among the seeds."""
    (sent,) = conversation(said("SET_VRING_NUM", 1, 128))
    row = FRONT_END.named("SET_VRING_NUM")
    assert (sent.number, sent.payload) == (row.number, row.payload.encode(index=1, num=128))
    for seed in ("set up", "packed", "stopped and started", "reset", "records", "logged"):
        talk = Conversation()
        try:
            assert all(talk.hear(sent) for sent in conversation(TARGETS["session"].seeds[seed]))
            assert 0 in talk.dialogue.session.running(), seed
        finally:
            talk.end()


def test_each_message_that_is_served_succeeds_in_a_seed() -> None:
    """Or its handler would be looked at from outside alone."""
    heard: set[int] = set()
    taken: set[int] = set()
    for data in TARGETS["session"].seeds.values():
        talk = Conversation()
        try:
            for sent in conversation(data):
                heard.add(sent.number)
                if not talk.hear(sent):
                    break
                if talk.outcome.ok:
                    taken.add(sent.number)
        finally:
            talk.end()
    assert heard == {row.number for row in ROWS}
    assert {FRONT_END.name_of(number) for number in heard - taken} == NOT_SERVED


@by_target
@pytest.mark.timeout(GUIDED_S + 3600 if LONG else 120)
def test_whatever_is_made_of_the_seeds_holds(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if LONG and importlib.util.find_spec("atheris") is not None:
        guided(name, tmp_path)
        return
    if LONG:
        with capsys.disabled():
            print(f"\n{name}: not guided by coverage, for atheris is not installed (extra fuzz)")
    at_random(name, AT_RANDOM[name] * (MORE if LONG else 1))


def at_random(name: str, count: int) -> None:
    """So many changes of the seeds; the same ones each time, but in the long form."""
    choose = random.Random(None if LONG else 1)
    corpus = list(TARGETS[name].seeds.values())
    for _ in range(count):
        data = changed(corpus, choose)
        try:
            TARGETS[name].run(data)
        except BaseException as error:
            error.add_note(f"{name}, bytes.fromhex({data.hex()!r})")
            raise


def guided(name: str, folder: Path) -> None:
    """In a process of its own: libFuzzer ends its process."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(TARGETS[name].seeds.values()):
        (corpus / f"{number:03}").write_bytes(data)
    options = [f"-max_total_time={GUIDED_S}", f"-artifact_prefix={folder}/", "-timeout=60"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, *options, str(corpus)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=GUIDED_S + 1800,
        check=False,
    )
    found = [path.read_bytes().hex() for path in folder.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{done.stdout[-8000:]}\nbytes that did it: {found}"
    assert "\tDONE " in done.stdout, done.stdout[-2000:]
