"""Curves of any runs and sweeps side by side: one figure over kept tokens, one of the trade-off, one table.

Generators compare among themselves, over guidance scales.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from mergevq_platform.figures.overlay import overlay_figure
from mergevq_platform.figures.paper import paper_figure
from mergevq_platform.figures.pareto import front
from mergevq_platform.storage.hub import evaluations
from mergevq_platform.storage.lookup import find
from mergevq_platform.tracking.artifacts import fetch_curve_files
from mergevq_platform.tracking.store import Store

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

    Raises `InputError` for a name without a curve, and for curves that were not measured alike.
    """
    entries = [entry for name in names for entry in entries_of(name, home=home, tracking_uri=tracking_uri)]
    title = "Compared: " + ", ".join(names)
    figures = {
        "curves.png": overlay_figure(entries, title),
        "pareto.png": pareto_figure(entries, title),
    }
    if paper:
        figures["paper.png"] = paper_figure(entries, title)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / name for name in (*figures, "pareto.html", "curves.csv")}
    for name, figure in figures.items():
        save_png(figure, files[name])
    files["pareto.html"].write_text(comparison_html(entries, title))
    files["curves.csv"].write_text(comparison_csv(entries))
    return files


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
    if Path(name).name == name and (home / "ray" / name / "place.json").is_file():
        trials = sorted((home / "ray").glob(f"{name}-[0-9]*/finished.json"))
        if not trials:
            raise InputError(f"sweep '{name}' has no finished trial yet")
        from mergevq_platform.sweeps import report, stored
        from mergevq_platform.sweeps.finished import Finished

        definition = stored.stored_definition(name, home)
        records = [record for trial in trials if (record := Finished.load(trial))]
        return report.entries(definition, records)
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


def show(names: Sequence[str], *, home: Path, tracking_uri: str | None = None) -> None:
    """Print every point, those on the Pareto front marked."""
    entries = [entry for name in names for entry in entries_of(name, home=home, tracking_uri=tracking_uri)]
    points, curve = averaged(entries), entries[0].curve
    best = set(front([(p.loss, p.gain) for p in points]))
    table = Table(title="every point; * no other is better in both")
    for title in (
        "",
        comparison_axes(curve).x_column,
        curve.frechet_key,
        comparison_axes(curve).gain_key,
        "run",
    ):
        table.add_column(title, no_wrap=True)
    for index, p in enumerate(points):
        table.add_row("*" if index in best else "", f"{p.at:g}", f"{p.loss:.4g}", f"{p.gain:.4g}", p.label)
    print_table(table)
