"""The sections of the shared views: of an experiment, of one run, of a sweep; made from what the runs have.

A chart's title is its metric's key and cannot be set, a y axis has no label: what a section is about stands in its name,
of which a window of 1280 pixels shows some 35 letters. Metrics that no card shows get one on their own, in the section that bears the
name of their prefix: therefore the folded sections are called like prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mergevq_platform.tracking.delivery import PARENT_TAG
from mergevq_platform.tracking.page_images import IMAGES_TAG
from mergevq_platform.tracking.records import (
    ALLOCATION_KEY,
    ALLOCATION_PREFIX,
    CURVE_DETAILS_PREFIX,
    CURVE_PREFIX,
    KEPT_KEY,
    SCALE_KEY,
    SCALE_PREFIX,
)
from mergevq_platform.tracking.view_state import (
    Card,
    PageState,
    Section,
    differences,
    images,
    lines,
    parallel,
    scatter,
)

if TYPE_CHECKING:
    from mergevq_platform.tracking.listing import TrackedRun

KEPT_IMAGES = ("reconstructions", "clusters")  # keys of images with step = kept tokens
ALLOCATION_IMAGES = ("few_and_many",)  # with step = wanted mean of kept tokens
SCALE_IMAGES = ("samples",)  # with step = 100 x guidance scale
COMPARED_PARAMS = 5
MOST_CHARTED = 20  # trials of a sweep, as MLflow's word for them in `sweep_page` says
_FRECHET = re.compile(r"[rg]fi?d(?:_\w+)?")
_DERIVED = ("_recovered", "_before", "_std", "_low", "_high")
_PROBES = ("probe_top1_cls", "probe_mergevq_top1_cls", "probe_mae_top1_cls", "probe_dinov2_top1_cls")
_BASELINES = ("probe_top1_untrained", "majority_top1")
_NO_PREFIX, _SYSTEM = (
    "Model metrics",
    "System metrics",
)  # MLflow's sections of metrics without a prefix, and of `system/`
_TRAINING = ("train", "val")


def experiment_page(runs: Sequence[TrackedRun], kept: int) -> PageState:
    """The runs of an experiment over each other: trade-off, images (at first of `kept` tokens), comparison; the rest folded."""
    sections = [*_curves(runs), *_images(runs, kept, table=True), *_compared(runs)]
    return PageState(sections=[*sections, *_rest(runs, training=not sections)])


def run_page(run: TrackedRun, kept: int) -> PageState:
    """One run, without the list of runs."""
    sections = [*_curves([run]), *_images([run], kept, table=False)]
    return PageState(
        sections=[*sections, *_rest([run], training=True)],
        search_filter=f"attributes.run_id = '{run.run_id}'",
        without_list=True,
    )


def sweep_page(uid: str, trials: Sequence[TrackedRun], kept: int) -> PageState:
    """The trials of the sweep `uid`, the best first: trade-off, comparison, images.

    All of them are in the charts or, of more than `MOST_CHARTED`, the first: the page takes twice the time for the hundred that it
    loads, and lines hide each other. The names of its sections say so, and its list shows any other trial.
    """
    keys = _metrics(trials)
    frechet = frechet_keys(keys, CURVE_PREFIX) or frechet_keys(keys, SCALE_PREFIX)
    sections = [*_curves(trials), *_compared(trials)]
    many = len(trials) > MOST_CHARTED
    if many:
        first = f"{'Best' if frechet else 'First'} {MOST_CHARTED}"
        sections = [replace(section, name=f"{first}: {section.name}") for section in sections]
    sections += _images(trials, kept, table=True)
    return PageState(
        sections=[*sections, *_rest(trials, training=not sections)],
        search_filter=f"tags.`{PARENT_TAG}` = '{uid}'",
        order_by=f"metrics.`{frechet[0]}`" if frechet else "tags.`mlflow.runName`",
        shown_runs="FIRST_20_RUNS" if many else "SHOW_ALL",
    )


def _curves(runs: Sequence[TrackedRun]) -> list[Section]:
    keys = _metrics(runs)
    sections = []
    if cards := _cards_over_kept_tokens(keys):
        sections.append(Section(name="Trade-off over kept tokens", cards=cards))
    if cards := _cards_over_scales(keys):
        sections.append(Section(name="Over guidance scales", cards=cards))
    if cards := _cards_over_budgets(keys):
        sections.append(Section(name="Allocators over mean kept tokens", cards=cards))
    return sections


def _cards_over_kept_tokens(keys: Sequence[str]) -> list[Card]:
    goals: list[list[str]] = [[key] for key in frechet_keys(keys, CURVE_PREFIX)]
    if probes := _named(keys, _PROBES)[:1]:
        goals.append([*probes, *_named(keys, _BASELINES)])
    goals += [[key] for key in _named(keys, ("psnr",)) if key.startswith(CURVE_PREFIX)]
    return [lines(goal, over=KEPT_KEY) for goal in goals]


def _cards_over_scales(keys: Sequence[str]) -> list[Card]:
    own = [key for key in keys if key.startswith(SCALE_PREFIX)]
    goals: list[list[str]] = [[key] for key in frechet_keys(own, SCALE_PREFIX)]
    goals += [[key] for key in own if key == f"{SCALE_PREFIX}class_top1"]
    both = [key for key in own if re.fullmatch(r"(precision|recall)(_\w+)?", key.removeprefix(SCALE_PREFIX))]
    return [lines(goal, over=SCALE_KEY) for goal in [*goals, *([both] if both else [])]]


def _cards_over_budgets(keys: Sequence[str]) -> list[Card]:
    """A chart a metric, a line an allocator: quality and probe, then what each saves at equal PSNR."""
    own = [key for key in keys if key.startswith(ALLOCATION_PREFIX)]
    goals = [frechet_keys(own, ALLOCATION_PREFIX)]
    goals += [
        [key for key in own if key.startswith(f"{ALLOCATION_PREFIX}{metric}_")]
        for metric in ("psnr", "probe_top1_cls", "saved_tokens")
    ]
    return [lines(goal, over=ALLOCATION_KEY) for goal in goals if goal]


def _images(runs: Sequence[TrackedRun], kept: int, *, table: bool) -> list[Section]:
    """Image sections of the runs that have images: keys by runs in a table, or the images of one run at their full width."""
    keys = _metrics([run for run in runs if IMAGES_TAG in run.tags])
    columns, height = (1, 500) if table else (2, 400)
    sections = []
    if any(key.startswith(CURVE_PREFIX) for key in keys):
        cards = [images(KEPT_IMAGES, kept)] if table else [images([key], kept) for key in KEPT_IMAGES]
        name = "Images: the slider is kept tokens"
        sections.append(Section(name=name, cards=cards, columns=columns, height=height))
    if any(key.startswith(SCALE_PREFIX) for key in keys):
        name, cards = "Images: the slider is 100 × guidance scale", [images(SCALE_IMAGES, 100)]
        sections.append(Section(name=name, cards=cards, columns=columns, height=height))
    if ALLOCATION_KEY in keys:
        last = max(int(run.metrics.get(ALLOCATION_KEY, 0)) for run in runs)
        name, cards = "Images: the slider is the wanted mean", [images(ALLOCATION_IMAGES, last)]
        sections.append(Section(name=name, cards=cards, columns=1, height=500))
    return sections


def _compared(runs: Sequence[TrackedRun]) -> list[Section]:
    measured = [run for run in runs if run.has_curve]
    if len(measured) < 2:
        return []
    keys = _metrics(measured)
    frechet = frechet_keys(keys, CURVE_PREFIX)[:1] or frechet_keys(keys, SCALE_PREFIX)[:1]
    second = _named(keys, _PROBES)[:1]
    second = second or [key for key in keys if key == f"{SCALE_PREFIX}class_top1"]
    second = second or [key for key in keys if key == f"{CURVE_PREFIX}psnr"]
    goals = [*frechet, *second]
    cards: list[Card] = [scatter(*goals)] if len(goals) == 2 else []
    params = differing(measured)
    if len(params) + len(goals) > 1:
        cards.append(parallel(params, goals))
    return [
        Section(name="Runs compared, at their last point", cards=cards, columns=2),
        Section(name="Parameters that differ", cards=[differences()], columns=1),
    ]


def _rest(runs: Sequence[TrackedRun], *, training: bool) -> list[Section]:
    """Sections for the metrics that no card shows; with `training`, the losses are open."""
    keys = _metrics(runs)
    found = {key.partition("/")[0] for key in keys if "/" in key} - {"system"}
    starts = (*(each.rstrip("/") for each in (CURVE_PREFIX, SCALE_PREFIX, ALLOCATION_PREFIX)), *_TRAINING)

    def rank(name: str) -> tuple[int, str]:
        return next((at for at, start in enumerate(starts) if name.startswith(start)), len(starts)), name

    opened = set(_TRAINING) if training else set()
    plain = any("/" not in key for key in keys) or any(IMAGES_TAG in run.tags for run in runs)
    system = any(key.startswith("system/") for key in keys)
    names = [*sorted(found, key=rank), *([_NO_PREFIX] * plain), *([_SYSTEM] * system)]
    return [Section(name=name, shown=name in opened) for name in names]


def frechet_keys(keys: Iterable[str], prefix: str) -> list[str]:
    """The Fréchet distances of images among `keys`, those of the standard Inception first; nothing derived from one."""
    found = [
        key
        for key in keys
        if key.startswith(prefix)
        and _FRECHET.fullmatch(key.removeprefix(prefix))
        and not key.endswith(_DERIVED)
        and not key.removeprefix(prefix)[1:].startswith(("fid_inf", "fd_inf"))
    ]
    return sorted(found, key=lambda key: ("fid" not in key, key))


def differing(runs: Sequence[TrackedRun]) -> list[str]:
    """The parameters that tell runs apart on an axis: few different, short values, numbers first; no names and paths."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    found = []
    for key in keys:
        values = [run.params[key] for run in runs if key in run.params]
        if len(set(values)) < 2 or any(len(value) > 40 or "/" in value for value in values):
            continue
        if key.rpartition(".")[2] in ("name", "description", "experiment"):
            continue
        found.append((not all(_is_number(value) for value in values), key == "seed", key))
    return [key for *_, key in sorted(found)][:COMPARED_PARAMS]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _metrics(runs: Sequence[TrackedRun]) -> list[str]:
    return sorted({key for run in runs for key in run.metrics})


def _named(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """The keys over kept tokens that have one of the names behind their prefix, in the order of names."""
    own = [key for key in keys if key.startswith((CURVE_PREFIX, CURVE_DETAILS_PREFIX))]
    return [key for name in names for key in own if key.rpartition("/")[2] == name]
