"""What the cells of `table4.py` say: means over seeds, slopes with intervals, a verdict."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mergevq.errors import InputError

PROBE, FRECHET = "probe_top1_cls", "rfd_random_v1"
CEILING = 2.0  # points: a mean so near to the teacher's own probe says nothing about K
COLUMNS = {  # of the table: key of a cell -> its head and decimals
    FRECHET: ("`rfd_random_v1`", 2),
    "psnr": ("PSNR, dB", 2),
    PROBE: ("probe, at K", 1),
    "probe_top1_cls_all_tokens": ("probe, all tokens", 1),
    "knn_top1_cls": ("k-NN, at K", 1),
    "probe_top1_untrained": ("probe, untrained", 1),
}


class Trend(NamedTuple):
    """Change of a value each time the kept count is halved, within a seed, and its 95 % interval."""

    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """The trained tokenizers of one setting: `cells[count][seed]` is a cell's result; `teacher` the probe of its teacher's features."""

    title: str
    cells: dict[int, dict[int, dict[str, Any]]]
    teacher: float | None = None

    @property
    def counts(self) -> list[int]:
        """The kept counts, ascending."""
        return sorted(self.cells)

    def values(self, count: int, key: str) -> list[float]:
        """A value of every seed at a count."""
        return [row[key] for _, row in sorted(self.cells[count].items())]

    def points(self, key: str) -> list[tuple[int, int, float]]:
        """(count, seed, value) of every cell."""
        return [(count, seed, row[key]) for count, rows in self.cells.items() for seed, row in rows.items()]


def read_settings(folder: Path) -> list[Setting]:
    """The results of trained tokenizers in a folder, by setting."""
    results = _results(folder)
    teachers = {result["teacher"]: result["probe_top1_teacher"] for result in results if "teacher" in result}
    found: dict[str, Setting] = {}
    for result in results:
        if "count" not in result:
            continue
        name, protocol = result["setting"], result["protocol"]
        title = f"{protocol['alignment']}; {protocol['steps']} steps of {protocol['batch']} images"
        setting = found.setdefault(name, Setting(title, {}, teachers.get(name)))
        setting.cells.setdefault(result["count"], {})[result["seed"]] = result
    return list(found.values())


def read_floor(folder: Path) -> dict[str, float] | None:
    """Fréchet distance and PSNR of images that show their mean colour alone; None where that was not measured."""
    return next((result for result in _results(folder) if result.get("baseline") == "mean_colour"), None)


def _results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()).get("result", {}) for path in sorted(folder.glob("*.json"))]


def read_curves(path: Path, name: str) -> Setting:
    """A sweep's curves.csv (`sweeps/keep_counts.py`) as a setting: each trial at the count that it was trained at.

    Raises `InputError` for a file of other trials, or of trials that were not measured there.
    """
    cells: dict[int, dict[int, dict[str, Any]]] = {}
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        for run in dict.fromkeys(row["run"] for row in rows):
            curve = [row for row in rows if row["run"] == run]
            (trained,) = json.loads(curve[0]["group"])
            own, every = (
                min(curve, key=lambda row: abs(float(row["merge_ratio"]) - wanted)) for wanted in (trained, 0)
            )
            if abs(float(own["merge_ratio"]) - trained) < 0.005:  # recipes round: 0.86 keeps 9 of 64, 0.859
                seeds = cells.setdefault(int(float(own["keep"])), {})
                values = {key: float(own[key]) for key in COLUMNS if key in own}
                seeds[len(seeds)] = values | {"probe_top1_cls_all_tokens": float(every[PROBE])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no curves.csv of a sweep over single merge ratios ({error!r})") from None
    if not cells:
        raise InputError(f"{path}: no trial is measured at the count that it was trained at")
    return Setting(name, cells)


def trend(points: Iterable[tuple[int, int, float]]) -> Trend | None:
    """Least squares of values on -log2 of the count, with a level of its own for every seed; None without a residual.

    Tokenizers of one seed share their initial weights and their batches, so that seeds are blocks. The interval is Student's.
    """
    rows = list(points)
    seeds = sorted({seed for _, seed, _ in rows})
    halvings = np.array([-math.log2(count) for count, _, _ in rows])
    y = np.array([value for _, _, value in rows])
    blocks = np.array([[float(seed == own) for own in seeds] for _, seed, _ in rows])
    degrees = len(rows) - len(seeds) - 1
    if degrees < 1 or len(set(halvings.tolist())) < 2:
        return None
    # What is left of both once every seed's mean is taken away: its regression is the slope (Frisch, Waugh and Lovell).
    away = blocks @ np.linalg.pinv(blocks)
    x, y = halvings - away @ halvings, y - away @ y
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    error = math.sqrt(float(residual @ residual) / degrees / float(x @ x))
    from scipy.stats import t  # half a second, which training does without

    wide = float(t.ppf(0.975, degrees)) * error
    return Trend(slope, slope - wide, slope + wide)


def verdict(claim: str, found: Trend | None, unit: str) -> str:
    """A sentence: yes, NO or undecided, by whether the interval of the slope excludes zero. The claim is that it rises."""
    if found is None:
        return f"undecided: {claim} (too few tokenizers for an interval)"
    word = "yes" if found.low > 0 else "NO" if found.high < 0 else "undecided"
    return f"{word}: {claim} ({found.slope:+.2f} {unit} each time K is halved, 95 % interval {found.low:+.2f} to {found.high:+.2f})"


def verdicts(setting: Setting) -> list[str]:
    """The two halves of Table 4's trend, and whether there was room for it: above the untrained encoder, below the teacher."""
    every, logs = setting.points(PROBE), [(n, seed, math.log(x)) for n, seed, x in setting.points(FRECHET)]
    mean = float(np.mean([value for _, _, value in every]))
    untrained = float(np.mean([value for _, _, value in setting.points("probe_top1_untrained")]))
    found = [
        verdict("the probe rises as K falls", trend(every), "points"),
        verdict("the Fréchet distance rises as K falls", trend(logs), "in its natural logarithm"),
        f"probe, mean over {len(every)} tokenizers: {mean:.1f}, of the untrained encoder {untrained:.1f}",
    ]
    if mean < untrained:
        found.append("below the untrained encoder: a trend of this probe is none of what training taught it")
    if setting.teacher is not None:
        found[2] += f", of the teacher's own features {setting.teacher:.1f}"
        if mean > setting.teacher - CEILING:
            found.append(f"saturated: within {CEILING:g} points of the teacher there is no room for a trend")
    return found


def markdown(settings: Sequence[Setting], floor: Mapping[str, float] | None = None) -> str:
    """Tables, verdicts and protocols; `floor` is that of `read_floor`."""
    parts: list[str] = []
    for setting in settings:
        heads = [head for head, _ in COLUMNS.values()]
        parts += [f"### {setting.title[:1].upper()}{setting.title[1:]}", ""]
        parts += ["| K | seeds | " + " | ".join(heads) + " |", "|---:|---:" + "|---:" * len(heads) + "|"]
        for count in setting.counts:
            cells = [_mean(setting.values(count, key), decimals) for key, (_, decimals) in COLUMNS.items()]
            parts.append(f"| {count} | {len(setting.cells[count])} | " + " | ".join(cells) + " |")
        parts += ["", *(f"- {sentence}" for sentence in verdicts(setting)), ""]
    if floor is not None:
        parts.append(
            f"Images that show their own mean colour alone: `{FRECHET}` {floor[FRECHET]:.2f}, PSNR {floor['psnr']:.2f} dB.\n"
        )
    return "\n".join(parts)


def _mean(values: Sequence[float], decimals: int) -> str:
    """Mean ± standard deviation over seeds (n - 1); no deviation of one."""
    text = f"{np.mean(values):.{decimals}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def gains(setting: Setting, most: int) -> list[tuple[int, int, float]]:
    """The probe of every cell less that of the same seed's tokenizer that keeps `most`; seeds without one are left out."""
    base = {seed: value for count, seed, value in setting.points(PROBE) if count == most}
    return [(count, seed, value - base[seed]) for count, seed, value in setting.points(PROBE) if seed in base]
