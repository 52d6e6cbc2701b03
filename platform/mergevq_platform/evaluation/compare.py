"""Curves of any runs and sweeps side by side: one figure over kept tokens, one of the trade-off, one table.

Sweeps lie over each other with a Pareto front and a hypervolume each. Generators compare among themselves, over guidance scales.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.tables import print_table
from mergevq_platform.figures import save_png
from mergevq_platform.figures.compared import Entry, Evaluation, averaged, comparison_axes
from mergevq_platform.figures.comparison_export import comparison_csv, comparison_html
from mergevq_platform.figures.front import pareto_figure
from mergevq_platform.figures.fronts import ComparedFronts, compared_fronts, fronts_figure
from mergevq_platform.figures.overlay import overlay_figure
from mergevq_platform.figures.paper import paper_figure
from mergevq_platform.figures.pareto import front
from mergevq_platform.storage.hub import evaluations
from mergevq_platform.storage.lookup import find
from mergevq_platform.tracking.artifacts import fetch_curve_files
from mergevq_platform.tracking.store import Store

PRINTED_POINTS = 200

# What a comparison reads of a protocol.
OF_CURVE = ("extractor", "data_fingerprint", "images", "split", "step", "ema")
OF_REPORT = (
    "extractor",
    "data_fingerprint",
    "images",
    "keys",
    "reference",
    "generator",
    "kind",
    "kept_tokens",
)


def compare(
    names: Sequence[str], *, home: Path, out: Path, paper: bool = False, tracking_uri: str | None = None
) -> dict[str, Path]:
    """Write curves.png, pareto.png, pareto.html and curves.csv (and paper.png) of runs and sweeps to `out`.

    Of two sweeps or more, the figures show the front of each, and fronts.csv holds them. Raises `InputError` for a name without
    a curve, and for curves that were not measured alike.
    """
    return write(collected(names, home=home, tracking_uri=tracking_uri), out, paper=paper)


@dataclass(frozen=True)
class Comparison:
    """The curves of runs and sweeps; where two or more are sweeps, the group of an entry is what it came from."""

    names: Sequence[str]
    entries: list[Entry]
    fronts: ComparedFronts | None  # of sweeps


def collected(names: Sequence[str], *, home: Path, tracking_uri: str | None = None) -> Comparison:
    """The curves of all names; see `entries_of`."""
    from mergevq_platform.sweeps.stored import is_sweep

    found = {name: entries_of(name, home=home, tracking_uri=tracking_uri) for name in names}
    if sum(is_sweep(name, home) for name in found) < 2:
        return Comparison(names, [entry for same in found.values() for entry in same], None)
    entries = [
        replace(
            entry, group=name, label=entry.label if entry.label.startswith(name) else f"{name}: {entry.label}"
        )
        for name, same in found.items()
        for entry in same
    ]
    return Comparison(names, entries, compared_fronts(entries))


def write(comparison: Comparison, out: Path, *, paper: bool = False) -> dict[str, Path]:
    """Write the files of a comparison, see `compare`; returns them by name."""
    entries, fronts = comparison.entries, comparison.fronts
    title = "Compared: " + ", ".join(comparison.names)
    figures = {
        "curves.png": overlay_figure(entries, title),
        "pareto.png": fronts_figure(entries, fronts, title) if fronts else pareto_figure(entries, title),
    }
    if paper:
        figures["paper.png"] = paper_figure(entries, title)
    page = (
        comparison_html(entries, title, fronts=fronts.legend(), said=fronts.sentence())
        if fronts
        else comparison_html(entries, title)
    )
    texts = {"pareto.html": page, "curves.csv": comparison_csv(entries)}
    if fronts:
        texts["fronts.csv"] = fronts.csv()
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_png(figure, out / name)
    for name, text in texts.items():
        (out / name).write_text(text)
    return {name: out / name for name in (*figures, *texts)}


def entries_of(name: str, *, home: Path, tracking_uri: str | None = None) -> list[Entry]:
    """The fullest curve of a run, of equally full ones the newest; or those of all finished trials of a sweep; or a file
    curve.json or report.json. A generator's curve is over its scales.

    `name` is what `lookup.find` takes: of a run that only the tracking store knows, and of a registered model, the curves come
    from there, of a model of the Hub from its repository. Raises `InputError` if there is none.
    """
    path = Path(name)
    if path.is_file():
        curve = _loaded(path)
        return [Entry(curve.run, curve.run, curve)]
    from mergevq_platform.sweeps import stored

    if stored.is_sweep(name, home):
        from mergevq_platform.sweeps import finished, report

        trials = finished.finished_trials(name, home)
        if not trials:
            raise InputError(f"sweep '{name}' has no finished trial yet")
        return report.entries(stored.stored_definition(name, home), trials)
    store = Store.at(home, tracking_uri)
    model = find(name, home=home, store=store)
    if model.tracked is not None:
        found = fetch_curve_files(store, model.tracked, home / "evaluations")
    elif model.run is not None:
        folder = model.run.directory
        found = [*folder.glob("curve*/curve.json"), *folder.glob("generation*/report.json")]
    else:
        found = evaluations(model.place) if on_hub(model.place) else []
    found = sorted(found, key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"run '{name}' has no curve yet: measure it with mergevq evaluate {name}")
    curves = [_loaded(file) for file in found]
    chosen = max(range(len(found)), key=lambda index: (len(curves[index].rows), index))
    if chosen != len(found) - 1:
        fuller, newest = (f"{found[at].parent.name} ({len(curves[at].rows)} points)" for at in (chosen, -1))
        print(f"{name}: {fuller}, not the newer {newest}", file=sys.stderr)
    return [Entry(name, name, curves[chosen])]


def _loaded(path: Path) -> Evaluation:
    kind, needed = (GeneratorReport, OF_REPORT) if path.name == "report.json" else (Curve, OF_CURVE)
    found: Evaluation = kind.load(path)
    if lacks := [key for key in needed if key not in found.protocol]:
        raise InputError(
            f"{path}: its protocol lacks {', '.join(lacks)}, without which its numbers mean nothing: evaluate it again"
        )
    return found


def show(comparison: Comparison) -> None:
    """Print every point, those on the Pareto front marked; of very many those alone. Of sweeps, first what each front is worth."""
    if comparison.fronts:
        _show_fronts(comparison.fronts)
    points, curve = averaged(comparison.entries), comparison.entries[0].curve
    best = set(front([(p.loss, p.gain) for p in points]))
    few = len(points) <= PRINTED_POINTS
    title = "every point" if few else f"the best of {len(points):,} points; curves.csv has all"
    table = Table(title=f"{title}; * no other is better in both")
    for title in (
        "",
        comparison_axes(curve).x_column,
        curve.frechet_key,
        comparison_axes(curve).gain_key,
        "run",
    ):
        table.add_column(title, no_wrap=True)
    for index, p in enumerate(points):
        if not few and index not in best:
            continue
        table.add_row("*" if index in best else "", f"{p.at:g}", f"{p.loss:.4g}", f"{p.gain:.4g}", p.label)
    print_table(table)


def _show_fronts(fronts: ComparedFronts) -> None:
    header, *rows = fronts.table()
    table = Table(title="sweeps, the largest hypervolume first")
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_table(table)
    print(fronts.sentence())
