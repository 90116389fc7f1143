"""The command that looks at the models of a layout."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tests.model.config import Limits
from tests.model.search import Result

C = TypeVar("C", bound=Limits)


class Mutant(Protocol):
    """A mistake that the model of this name finds."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    def worker(self) -> type[Any]:
        """The algorithm with it."""


def report(name: str, config: Limits, result: Result, seconds: float) -> str:
    """What was found, in words: a line, and the history of a violation."""
    verdict = "none wrong" if result.problem is None else result.problem
    lines = [f"{name} ({config}): {result.states} states, {seconds:.1f} s: {verdict}"]
    lines += [f"  {number:3} {step}" for number, step in enumerate(result.history, 1)]
    return "\n".join(lines)


def command(name: str, about: str | None) -> argparse.ArgumentParser:
    """Of a module of models."""
    parser = argparse.ArgumentParser(prog=name, description=about)
    parser.add_argument("--large", action="store_true", help="the large models, too")
    parser.add_argument("--mutants", action="store_true", help="the mistakes, and how they show")
    return parser


def carry_out(
    options: argparse.Namespace,
    look: Callable[..., Result],
    small: Mapping[str, C],
    large: Mapping[str, C],
    mutants: Sequence[Mutant],
) -> int:
    """Look at what the options ask for and print what is found; 1 if one is not as it has to be."""
    models = {**small, **large}
    wrong = 0
    for name in models if options.large else small:
        start = time.process_time()
        result = look(models[name])
        print(report(name, models[name], result, time.process_time() - start), flush=True)
        wrong += result.problem is not None
    for mutant in mutants if options.mutants else ():
        start = time.process_time()
        result = look(models[mutant.model], mutant.worker())
        seconds = time.process_time() - start
        print(report(mutant.name, models[mutant.model], result, seconds), flush=True)
        wrong += result.problem is None
    return min(wrong, 1)
