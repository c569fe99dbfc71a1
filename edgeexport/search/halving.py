"""Successive halving: after each round the best third goes on.

The rule: all students of a round are told before any is dropped: the order in which they are trained decides nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import MissingExtra
from edgeexport.search.budget import REDUCTION

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


class Halving:
    """An Optuna study of students that are there already: a trial each, told round by round, pruned by thirds."""

    def __init__(self, names: list[str]) -> None:
        optuna = load_optuna()
        self._study = optuna.create_study(direction="minimize", pruner=_pruner())
        for name in names:
            self._study.enqueue_trial({"student": name})
        kind = {"student": optuna.distributions.CategoricalDistribution(names)}
        self._trials: list[Trial] = [self._study.ask(kind) for _ in names]

    def tell(self, lost: Mapping[int, float], *, steps: int) -> list[int]:
        """Take in what each student (by index) lost after `steps` steps; return those that go on, best first."""
        optuna = load_optuna()
        for index, value in lost.items():
            self._trials[index].report(value, steps)
        dropped = [index for index in lost if self._trials[index].should_prune()]
        for index in dropped:
            self._study.tell(self._trials[index], state=optuna.trial.TrialState.PRUNED)
        return sorted((index for index in lost if index not in dropped), key=lambda index: (lost[index], index))


def load_optuna() -> Any:
    """Return optuna, made quiet. Raises MissingExtra."""
    try:
        import optuna
    except ImportError:
        raise MissingExtra("optuna", extra="search", purpose="a search for the best model") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@functools.cache
def _pruner() -> Any:
    """Optuna's own pruner judges a trial against those told before it; this one against its whole round."""
    optuna = load_optuna()

    class BestThird(optuna.pruners.BasePruner):  # type: ignore[misc,name-defined] # a class made at run time
        """Prunes what is not among the best third of all that were told the same step."""

        def prune(self, study: Study, trial: FrozenTrial) -> bool:
            step = trial.last_step or 0
            told = [each for each in study.get_trials(deepcopy=False) if step in each.intermediate_values]
            ranked = sorted(told, key=lambda each: (each.intermediate_values[step], each.number))
            best = ranked[: -(-len(ranked) // REDUCTION)]
            return all(each.number != trial.number for each in best)

    return BestThird()
