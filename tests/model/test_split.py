"""The split ring's protocol holds in every state of the small models, and they would notice."""

from __future__ import annotations

import pytest

from tests.model.mutants import MUTANTS, Mutant
from tests.model.split import LARGE, SMALL, look, main, report


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_lost_doubled_or_forgotten(name: str) -> None:
    result = look(SMALL[name])
    assert result.problem is None, report(name, SMALL[name], result, 0)
    assert result.states > 1000


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_each_mistake_is_found(mutant: Mutant) -> None:
    config = SMALL.get(mutant.model) or LARGE[mutant.model]
    result = look(config, mutant.worker())
    assert result.problem is not None, f"{mutant.name} survives"
    assert result.history
    print(report(mutant.name, config, result, 0))


def test_the_command_looks_at_the_small_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.model.split.SMALL", {"one slot": SMALL["one slot"]})
    assert main([]) == 0
    assert "none wrong" in capsys.readouterr().out
