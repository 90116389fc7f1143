"""The packed ring's protocol holds in every state of the small models, and they would notice."""

from __future__ import annotations

import os

import pytest

from tests.model.command import report
from tests.model.packed.models import LARGE, SMALL, look, main
from tests.model.packed.mutants import MUTANTS, Mutant

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
MODELS = {**SMALL, **LARGE}
FOUND = [mutant for mutant in MUTANTS if LONG or mutant.model in SMALL]
pytestmark = pytest.mark.timeout(3600 if LONG else 300)


@pytest.mark.parametrize("name", MODELS if LONG else SMALL)
def test_nothing_is_lost_doubled_or_forgotten(name: str) -> None:
    result = look(MODELS[name])
    assert result.problem is None, report(name, MODELS[name], result, 0)
    assert result.states > 1000


@pytest.mark.parametrize("mutant", FOUND, ids=[mutant.name for mutant in FOUND])
def test_each_mistake_is_found(mutant: Mutant) -> None:
    result = look(MODELS[mutant.model], mutant.worker())
    assert result.problem is not None, f"{mutant.name} survives"
    assert result.history
    print(report(mutant.name, MODELS[mutant.model], result, 0))


def test_the_command_looks_at_the_small_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.model.packed.models.SMALL", {"one slot": SMALL["one slot"]})
    assert main([]) == 0
    assert "none wrong" in capsys.readouterr().out
