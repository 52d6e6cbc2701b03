"""The report of a sweep: overlaid curves, Pareto front, tables, importance, and the winner as a recipe."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.table import Table

from mergevq.errors import InputError
from mergevq_platform.evaluation.note import linked_figure, narrow_copy, run_note
from mergevq_platform.evaluation.tables import print_table, table_console
from mergevq_platform.figures import save_png
from mergevq_platform.figures.compared import Entry, averaged, comparison_axes, require_one_identity
from mergevq_platform.figures.comparison_export import comparison_csv, comparison_html
from mergevq_platform.figures.front import pareto_figure
from mergevq_platform.figures.overlay import overlay_figure
from mergevq_platform.figures.pareto import front, hypervolume
from mergevq_platform.sweeps.cost import SweepCost
from mergevq_platform.sweeps.definition import Sweep, described
from mergevq_platform.sweeps.explained import HEADER, Explained, explained
from mergevq_platform.sweeps.families import Families
from mergevq_platform.sweeps.finished import Finished, by_choice
from mergevq_platform.sweeps.objectives import Objective
from mergevq_platform.sweeps.questions import Asker, Question
from mergevq_platform.sweeps.savings import savings
from mergevq_platform.sweeps.stopped import StoppedTrial, steps_saved, stopped_rows, stopped_sentence
from mergevq_platform.tracking.notes import NOTE_TAG
from mergevq_platform.tracking.recorder import Recorder

NEXT = "next.md"  # cost and questions
NOTE_TRIALS = 10  # the best, in the sweep's note
MOST_NAMED = 20  # trials, in one sentence
NOTE_FIGURES = ("curves.png", "pareto.png")


def entries(definition: Sweep, finished: Sequence[Finished]) -> list[Entry]:
    """The trials' curves; repetitions over seeds share a label, families a colour."""
    choices = by_choice(finished)
    families = Families.of(definition)
    labels: dict[str, str] = {}  # trial -> label
    taken: set[str] = set()
    for same in choices:
        text = described(same[0].params)
        # Choices that differ in a fifth digit alone are no repetitions of each other.
        label = f"{text} ({same[0].name})" if text in taken else text
        taken.add(label)
        labels |= {trial.name: label if len(choices) < len(finished) else trial.name for trial in same}
    return [
        Entry(labels[trial.name], families.name(trial.params), trial.evaluation())
        for trial in sorted(finished, key=lambda trial: families.rank(trial.params))
    ]


def best(definition: Sweep, finished: Sequence[Finished]) -> Finished | None:
    """The winner: best first objective, over the mean of its seeds; None where no trial has a finite one."""
    first = definition.objectives[0]
    means = {
        trial.name: _score(first, float(np.mean([t.objectives[first.name] for t in same])))
        for same in by_choice(finished)
        for trial in same
    }
    winner = max(finished, key=lambda trial: (means[trial.name], _score(first, trial.objectives[first.name])))
    return winner if math.isfinite(winner.objectives[first.name]) else None


def _score(objective: Objective, value: float) -> float:
    # A trial that diverged is no better than any other, whatever it aims at.
    return objective.sign * value if math.isfinite(value) else -math.inf


def not_comparable(finished: Sequence[Finished]) -> str | None:
    """The reason why the trials' curves cannot be laid over each other, None where they can: a space may change how they are measured."""
    try:
        require_one_identity([trial.evaluation() for trial in finished])
    except InputError as error:
        return str(error)
    return None


def table(definition: Sweep, finished: Sequence[Finished]) -> list[list[str]]:
    """Header and rows: a trial, its objectives, the hypervolume share of its curve, its choice; the best first."""
    first = definition.objectives[0]
    ordered = sorted(finished, key=lambda t: -_score(first, t.objectives[first.name]))
    names = [objective.name for objective in definition.objectives]
    shared = [] if "hypervolume" in names or not_comparable(finished) else ["hypervolume"]
    volumes = hypervolumes(finished) if shared else {}
    families = Families.of(definition)
    rows = [["trial", "family", *names, *shared, "steps", "minutes", "choice"]]
    for trial in ordered:
        rows.append(
            [
                trial.name,
                families.name(trial.params),
                *(f"{trial.objectives[name]:.4g}" for name in names),
                *([f"{volumes[trial.name]:.4g}"] if shared else []),
                str(trial.steps),
                f"{trial.seconds / 60:.1f}",
                described(trial.params),
            ]
        )
    return rows


def hypervolumes(finished: Sequence[Finished]) -> dict[str, float]:
    """The area of (ln Fréchet distance, gain) that each trial's curve dominates, up to the worst point of all."""
    curves = {trial.name: trial.evaluation() for trial in finished}
    points = {
        name: [(math.log(max(row[c.frechet_key], 1e-12)), row[comparison_axes(c).gain_key]) for row in c.rows]
        for name, c in curves.items()
    }
    everything = [point for some in points.values() for point in some]
    worst = (max(loss for loss, _ in everything), min(gain for _, gain in everything))
    return {name: hypervolume(some, worst) for name, some in points.items()}


def pareto_rows(definition: Sweep, finished: Sequence[Finished]) -> list[list[str]]:
    """Header and rows: the points that no other beats."""
    points = averaged(entries(definition, finished))
    curve = finished[0].evaluation()
    names = comparison_axes(curve)
    rows = [[names.x_column, curve.frechet_key, names.gain_key, "family", "trial"]]
    for index in front([(p.loss, p.gain) for p in points]):
        p = points[index]
        rows.append([f"{p.at:g}", f"{p.loss:.4g}", f"{p.gain:.4g}", p.group, p.label])
    return rows


def write(
    definition: Sweep,
    name: str,
    finished: Sequence[Finished],
    folder: Path,
    stopped: Sequence[StoppedTrial] = (),
    *,
    cost: SweepCost | None = None,
) -> dict[str, Path]:
    """Write the figures, the tables and the winning recipe, those that there can be; returns the files by name.

    A figure that cannot be drawn is not among them, and its reason is the first of the remarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}

    def text(name: str, content: str) -> None:
        files[name] = folder / name
        files[name].write_text(content)

    undrawn: list[str] = []
    if not not_comparable(finished):
        some, family, title = entries(definition, finished), definition.family_key, definition.question
        for file, figure in (("curves.png", overlay_figure), ("pareto.png", pareto_figure)):
            try:
                save_png(figure(some, title, family), folder / file)
                files[file] = folder / file
            except Exception as error:  # whatever it is, it costs the figure alone: trials took hours
                (folder / file).unlink(missing_ok=True)  # one of an earlier report
                undrawn.append(
                    f"{file} was not drawn ({type(error).__name__}: {error}): resume the sweep to try again"
                )
        text("pareto.html", comparison_html(some, title))
        text("curves.csv", comparison_csv(some))
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(table(definition, finished))
    text("trials.csv", rows.getvalue())
    mattered = explained(definition, finished)
    asked: list[Question] = []
    if (winner := best(definition, finished)) is not None:
        first = definition.objectives[0]
        head = f"# The winner of sweep {name} by {first.name} ({first.mode}): {described(winner.params)}\n"
        recipe = {**winner.recipe, "name": f"{definition.name}-winner"}
        text("winner.yaml", head + yaml.safe_dump(recipe, sort_keys=False, width=120))
        known = mattered.get(first.name, {})
        asked = Asker(definition, finished, winner, known, str(files["winner.yaml"])).questions()
    said = [*undrawn, *([cost.sentence()] if cost else []), *map(str, asked)]
    after = "".join(f"- {line}\n" for line in said)
    text(NEXT, after)
    text("sweep.md", markdown(definition, name, finished, mattered, after, stopped))
    return files


def omissions(definition: Sweep, finished: Sequence[Finished]) -> list[str]:
    """The omissions of a report, a line for each: trials without a finite objective, curves that do not go together."""
    lines = []
    for objective in definition.objectives:
        without = [trial.name for trial in finished if not math.isfinite(trial.objectives[objective.name])]
        if without:
            more = len(without) - MOST_NAMED
            names = ", ".join(without[:MOST_NAMED]) + (
                f" and {more:,} more, in trials.csv" if more > 0 else ""
            )
            lines.append(f"{objective.name} is no finite number of {names}: not ranked by it")
    if reason := not_comparable(finished):
        lines.append(f"no figure of all trials: {reason}")
    return lines


def shared(finished: Sequence[Finished]) -> list[str]:
    """One line on the trunk that the trials share and the steps that it saved, where they were forked."""
    sentence = savings(finished)
    return [sentence] if sentence else []


def remarks(files: Mapping[str, Path]) -> list[str]:
    """The cost of a sweep and the questions that it leaves, a line each, of the files of its report."""
    return [line.removeprefix("- ") for line in files[NEXT].read_text().splitlines()]


def markdown(
    definition: Sweep,
    name: str,
    finished: Sequence[Finished],
    mattered: Mapping[str, Mapping[str, Explained]],
    after: str,
    stopped: Sequence[StoppedTrial] = (),
) -> str:
    """The sweep's findings as Markdown; `after` are its cost and its questions."""
    parts = [f"# {name}", definition.question, "## Trials", _markdown(table(definition, finished))]
    parts += shared(finished) + omissions(definition, finished)
    if not not_comparable(finished):
        parts += ["## The Pareto front", _markdown(pareto_rows(definition, finished))]
    if stopped:
        parts += ["## Stopped early", stopped_sentence(stopped, finished), _markdown(stopped_rows(stopped))]
    for name, shares in mattered.items():
        rows = [HEADER, *([key, *known.cells()] for key, known in shares.items())]
        parts += [f"## What mattered for {name}", _markdown(rows)]
    if after:
        parts += ["## Cost, and what to ask next", after.rstrip("\n")]
    parts.append(finished[0].evaluation().caption())
    return "\n\n".join(parts) + "\n"


def record(
    definition: Sweep,
    finished: Sequence[Finished],
    files: dict[str, Path],
    recorder: Recorder,
    stopped: Sequence[StoppedTrial] = (),
) -> None:
    """Record the report in the sweep's own run: artifacts, the winner, the front's size and hypervolume."""
    for file in files.values():
        recorder.artifact(file, "report")
    recorder.tags({NOTE_TAG: note(definition, finished, files)})
    for name in NOTE_FIGURES:
        if name in files:
            recorder.artifact(narrow_copy(files[name]), "report")
    values = {}
    if (winner := best(definition, finished)) is not None:
        recorder.tags(
            {"mergevq.winner": winner.name, "mergevq.winner_choice": described(winner.params)[:500]}
        )
        values = {f"best/{name}": value for name, value in winner.objectives.items()}
    if not not_comparable(finished):
        values["sweep/best_hypervolume"] = max(hypervolumes(finished).values())
    if stopped:
        values["sweep/steps_saved"] = steps_saved(stopped, finished)
    recorder.metrics(len(finished), values)


def note(definition: Sweep, finished: Sequence[Finished], files: Mapping[str, Path]) -> str:
    """The note of the sweep in MLflow: the winner in its first line, the best trials, overlaid curves and the front."""
    first, winner = definition.objectives[0], best(definition, finished)
    answer = f"no trial has a finite {first.name}"
    if winner is not None:
        answer = f"{described(winner.params)} wins: {first.name} {winner.objectives[first.name]:.4g} ({winner.name})"
    header, *rows = table(definition, finished)
    wanted = [
        header.index(name)
        for name in dict.fromkeys((header[0], *(o.name for o in definition.objectives), "choice"))
    ]
    cells = [[row[at] for at in wanted] for row in (header, *rows[:NOTE_TRIALS])]
    figures = [linked_figure("report", files[name]) for name in NOTE_FIGURES if name in files]
    said = [*shared(finished), *omissions(definition, finished), *remarks(files)]
    return run_note(answer, said, _markdown(cells), *figures, definition.question)


def show(definition: Sweep, finished: Sequence[Finished]) -> None:
    """Print the Pareto table, the best trials, and the omissions."""
    console = table_console()
    prefix = f"{finished[0].name.rpartition('-')[0]}-"  # the sweep's name, the same in every row
    shown = [("trials, best first", table(definition, finished))]
    if not not_comparable(finished):
        shown.append(("the Pareto front", pareto_rows(definition, finished)))
    for title, rows in shown:
        printed = Table(title=title)
        for column in rows[0]:
            printed.add_column(column, no_wrap=column != "choice")
        for row in rows[1:]:
            printed.add_row(*(cell.removeprefix(prefix) for cell in row))
        print_table(printed, console)
    for line in shared(finished) + omissions(definition, finished):
        print(line)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows[1:])])
