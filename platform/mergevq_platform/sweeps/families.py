"""Families of trials: the groups that figures and MLflow colour, by one parameter of the space.

A range of very many values is divided into bands, as many as there are colours: a family of one trial each says nothing.
"""

from __future__ import annotations

import bisect
import itertools
import zlib
from dataclasses import dataclass

from mergevq_platform.figures.frame import COLOURS
from mergevq_platform.sweeps import choosers
from mergevq_platform.sweeps.definition import Sweep
from mergevq_platform.sweeps.ranges import divided
from mergevq_platform.sweeps.space import Integer, Params, RealRange


@dataclass(frozen=True)
class Families:
    """The families of a sweep; `edges` lie between the bands of a range, and there are none where each value is a family."""

    sweep: Sweep
    key: str  # the parameter
    edges: tuple[float, ...] = ()
    bands: tuple[str, ...] = ()

    @classmethod
    def of(cls, sweep: Sweep) -> Families:
        """The families of a sweep: bands where its range has more values than there are colours, for more trials than that."""
        key = sweep.family_key
        domain = choosers.domains(sweep.space).get(key)
        if not isinstance(domain, RealRange | Integer) or sweep.num_trials <= len(COLOURS):
            return cls(sweep, key)
        if isinstance(domain, Integer) and domain.high - domain.low < len(COLOURS):
            return cls(sweep, key)
        ends = divided(domain, len(COLOURS))
        names = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(ends)]
        return cls(sweep, key, tuple(ends[1:-1]), tuple(names))

    def name(self, params: Params) -> str:
        """The family of a choice."""
        value = params.get(self.key)
        if self.bands and isinstance(value, int | float):
            return self.bands[bisect.bisect_right(self.edges, value)]
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    def rank(self, params: Params) -> int:
        """The place of a choice's family among bands, which rise; 0 where there are none."""
        name = self.name(params)
        return self.bands.index(name) if name in self.bands else len(self.bands)

    def colour(self, params: Params) -> str:
        """The colour of a choice's family in MLflow: the figures' where the trials are known beforehand.

        There are eight: more families share colours, and so may families that a search makes up as it goes.
        """
        family = self.name(params)
        if family in self.bands:
            return COLOURS[self.bands.index(family)]
        known: dict[str, None] = {}
        for choice in self.sweep.choices():
            known.setdefault(self.name(choice))
            if family in known:  # the first trials show every option soon: there may be thousands
                return COLOURS[(len(known) - 1) % len(COLOURS)]
        return COLOURS[zlib.crc32(family.encode()) % len(COLOURS)]
