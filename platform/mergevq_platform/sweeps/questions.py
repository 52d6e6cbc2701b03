"""The questions that a finished sweep leaves, each with the command that asks it.

More seeds, where trials of one choice differ more than choices do; a wider range, where the winner lies at the border of one; and a
narrower range of the parameter that explains most. Commands begin with the winner's recipe, which holds every other choice.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergevq.errors import InputError
from mergevq_platform.sweeps import choosers
from mergevq_platform.sweeps.definition import Sweep
from mergevq_platform.sweeps.explained import Explained
from mergevq_platform.sweeps.finished import Finished, by_choice
from mergevq_platform.sweeps.ranges import at_border, over, position, spanned, widened
from mergevq_platform.sweeps.space import Choice, Integer, RealRange, Value, keys_of

BEST_SHARE = 0.25  # of the choices, whose values say where to look closer
NARROWER = 0.8  # of a range: less is worth a sweep of its own
MOST_SEEDS_FACTOR = 4
COMPARED_CHOICES = 3  # of a sweep over more seeds


@dataclass(frozen=True)
class Question:
    """One sentence, and the command line that would answer it; None where no command line can."""

    sentence: str
    command: str | None

    def __str__(self) -> str:
        return f"{self.sentence}: {self.command}" if self.command else self.sentence


@dataclass(frozen=True)
class Asker:
    """A finished sweep with its winner; `explained` are the parameters of the first objective, `recipe` is the winner's file."""

    definition: Sweep
    finished: Sequence[Finished]
    winner: Finished
    explained: Mapping[str, Explained]
    recipe: str

    def questions(self) -> list[Question]:
        """The questions, those first that put the others in doubt."""
        found = [self._more_seeds(), *self._wider(), self._closer()]
        return [question for question in found if question is not None]

    def _more_seeds(self) -> Question | None:
        """More seeds, where the deviation within choices is larger than that between them."""
        first = self.definition.objectives[0]
        groups = [[trial.objectives[first.name] for trial in same] for same in by_choice(self.finished)]
        repeated = [values for values in groups if len(values) > 1 and all(map(math.isfinite, values))]
        if len(repeated) < 2:
            return None
        within = float(np.mean([np.var(values, ddof=1) for values in repeated]))
        seeds = round(float(np.mean([len(values) for values in repeated])))
        # By chance alone the means over seeds differ by this much less than trials do.
        between = max(0.0, float(np.var([np.mean(values) for values in repeated], ddof=1)) - within / seeds)
        if within <= between:
            return None
        wanted = MOST_SEEDS_FACTOR * seeds
        if between > 0:  # a standard error of half the deviation between choices
            wanted = min(wanted, max(2 * seeds, math.ceil(4 * within / between)))
        sentence = (
            f"More seeds are needed: trials of one choice differ more (deviation {math.sqrt(within):.3g} of {first.name}) than "
            f"choices do ({math.sqrt(between):.3g})"
        )
        key = next(iter(self.explained), next(iter(self.winner.params)))
        values = list(dict.fromkeys(params[key] for params in self._best_choices() if key in params))
        return Question(sentence, self._command(key, values[:COMPARED_CHOICES], "--seeds", str(wanted)))

    def _wider(self) -> Iterator[Question]:
        """A wider range of every parameter at whose border the winner lies, where it is known to explain something."""
        for key, value in self.winner.params.items():
            domain = self._domain(key)
            known = self.explained.get(key)
            if domain is None or not isinstance(value, int | float):
                continue
            if (known is not None and not known.told_apart) or (end := at_border(domain, value)) is None:
                continue
            wider = widened(domain, end)
            sentence = f"Widen {key}: the winner's {value:.4g} lies at the {end} border of {domain.low:.4g} to {domain.high:.4g}"
            if wider is None or not self._taken(key, wider.low if end == "lower" else wider.high):
                yield Question(f"{sentence}, and the recipe takes nothing beyond it", None)
            else:
                yield Question(sentence, self._command(key, wider))

    def _closer(self) -> Question | None:
        """The parameter to vary next: the one that surely explains most and is not settled."""
        if not self.explained or any(known.interval is None for known in self.explained.values()):
            return None
        sure = [key for key, known in self.explained.items() if known.told_apart]
        if not sure:
            count = len(by_choice(self.finished))
            return Question(
                f"No parameter can be told apart from none by {count} choices: more trials, or ranges further apart, would tell",
                None,
            )
        best = self._best_choices()
        best = best[: max(3, math.ceil(BEST_SHARE * len(best)))]
        for key in sorted(sure, key=lambda key: -(self.explained[key].interval or (0.0, 0.0))[0]):
            values = [params[key] for params in best if key in params]
            domain = self._domain(key)
            low, high = self.explained[key].interval or (0.0, 0.0)
            known = f"Vary {key} next: it explains {low:.0%} to {high:.0%} beyond chance"
            if domain is None:
                options = list(dict.fromkeys(values))
                every = choosers.domains(self.definition.space)[key]
                if isinstance(every, Choice) and 1 < len(options) < len(every.options):
                    sentence = f"{known}, and the best quarter of the choices took {len(options)} of its {len(every.options)} options"
                    return Question(sentence, self._command(key, options, "--seeds", "3"))
            elif at_border(domain, float(self.winner.params[key])) is None:
                numbers = [float(value) for value in values]
                narrow = spanned(domain, min(numbers), max(numbers))
                if narrow is not None and _width(domain, narrow) < NARROWER:
                    sentence = f"{known}, and the best quarter of the choices lies in {narrow.low:.3g} to {narrow.high:.3g}"
                    return Question(sentence, self._command(key, narrow))
        return None

    def _best_choices(self) -> list[dict[str, Value]]:
        """All choices with a finite first objective, the best mean over seeds first."""
        first = self.definition.objectives[0]
        scored = [
            (first.sign * float(np.mean([trial.objectives[first.name] for trial in same])), same[0].params)
            for same in by_choice(self.finished)
        ]
        ordered = sorted(scored, key=lambda scored: -scored[0])
        return [params for score, params in ordered if math.isfinite(score)]

    def _domain(self, key: str) -> RealRange | Integer | None:
        domain = choosers.domains(self.definition.space).get(key)
        return domain if isinstance(domain, RealRange | Integer) else None

    def _taken(self, key: str, value: float) -> bool:
        try:
            self.definition.recipe_of({**self.winner.params, key: value})
        except InputError:
            return False
        return True

    def _command(self, key: str, values: RealRange | Integer | Sequence[Value], *options: str) -> str | None:
        """The sweep over one key from the winner's recipe; None for options that no command line can write."""
        recipe_key = keys_of(self.definition.space, self.winner.params).get(key)
        domain = choosers.domains(self.definition.space)[key]
        text = None if recipe_key is None else over(recipe_key, domain, values)
        return text and shlex.join(["mergevq", "sweep", self.recipe, "--over", text, *options])


def _width(domain: RealRange | Integer, narrow: RealRange | Integer) -> float:
    """The share of a range that a part of it takes."""
    return position(domain, narrow.high) - position(domain, narrow.low)
