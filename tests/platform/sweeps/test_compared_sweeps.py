"""Sweeps over each other: a front and a hypervolume each, up to one point, and a figure that stays readable with many trials."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from mergevq_platform.evaluation import compare
from mergevq_platform.figures.compared import Entry, averaged
from mergevq_platform.figures.drawn import MOST_LINES, drawn
from mergevq_platform.figures.frame import MOST_NAMED, styles
from mergevq_platform.figures.front import pareto_figure
from mergevq_platform.figures.fronts import compared_fronts
from mergevq_platform.figures.overlay import overlay_figure
from mergevq_platform.sweeps import Grid, Random, Sweep, choice, log_uniform, mean_psnr, report
from mergevq_platform.sweeps.families import Families
from mergevq_platform.sweeps.terminal import MOST_ROWS, Board, TrialRow
from recorded_trials import finished, stored

SWEEP = Sweep(
    name="s",
    question="?",
    recipe="demo",
    space={"steps": choice(1, 2)},
    search=Grid(),
    objectives=(mean_psnr(),),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two sweeps, the second of which dominates one square of (ln distance, PSNR) more."""
    e = math.e
    stored(
        tmp_path,
        "first",
        SWEEP,
        [
            finished("first-000", {"steps": "1"}, {4: (e**3, 10.0), 16: (e**2, 11.0)}),
            finished("first-001", {"steps": "2"}, {4: (e**3, 9.0)}),
        ],
    )
    stored(
        tmp_path, "second", SWEEP, [finished("second-000", {"steps": "1"}, {4: (e, 10.0), 16: (e**2, 12.0)})]
    )
    return tmp_path


def test_each_sweep_has_its_front_and_its_hypervolume_up_to_the_worst_of_all_points(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare.collected(["first", "second"], home=home)
    assert found.fronts is not None
    first, second = found.fronts.fronts
    assert found.fronts.reference == pytest.approx((3.0, 9.0))
    assert first.hypervolume == pytest.approx(1 * 2)
    assert second.hypervolume == pytest.approx(2 * 1 + 1 * 2)
    assert [point.at for point in first.best] == [16]
    assert (first.of_joint, second.of_joint) == (0, 2)
    compare.show(found)
    said = capsys.readouterr().out
    assert "up to the worst of all points compared here: rfd_random_v1 20.09, psnr 9" in said.replace(
        "\n", " "
    )
    assert [row[0] for row in found.fronts.table()] == ["sweep", "second", "first"]


def test_the_files_of_a_comparison_of_sweeps_hold_both_fronts(home: Path, tmp_path: Path) -> None:
    files = compare.compare(["first", "second"], home=home, out=tmp_path / "out")
    assert sorted(files) == ["curves.csv", "curves.png", "fronts.csv", "pareto.html", "pareto.png"]
    rows = list(csv.DictReader(files["fronts.csv"].open()))
    assert [(row["sweep"], row["kept"]) for row in rows] == [
        ("first", "16"),
        ("second", "4"),
        ("second", "16"),
    ]
    page = files["pareto.html"].read_text()
    assert "first: hypervolume 2" in page
    assert "second: hypervolume 4" in page
    assert sorted(compare.compare(["first"], home=home, out=tmp_path / "alone")) == [
        "curves.csv",
        "curves.png",
        "pareto.html",
        "pareto.png",
    ]


def test_equal_choices_of_two_sweeps_are_not_averaged(tmp_path: Path) -> None:
    points = {4: (2.0, 10.0)}
    for name in ("a", "b"):
        seeds = [finished(f"{name}-00{seed}", {"steps": "1"}, points, seed=seed) for seed in range(2)]
        stored(tmp_path, name, SWEEP, seeds)
    found = compare.collected(["a", "b"], home=tmp_path)
    assert {entry.label for entry in found.entries} == {"a: steps=1", "b: steps=1"}


def many(count: int) -> list[Entry]:
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"optimizer.learning_rate": log_uniform(1e-4, 1e-2)},
        search=Random(trials=count),
        objectives=(mean_psnr(),),
    )
    trials = [
        finished(f"s-{i:03d}", params, {4: (2.0 + i % 7, 10.0 + i % 5), 9: (1.5 + i % 11, 11.0 + i % 3)})
        for i, params in enumerate(sweep.choices())
    ]
    return report.entries(sweep, trials)


def test_of_many_curves_the_front_and_the_best_of_every_family_are_drawn_and_it_is_said() -> None:
    entries = many(200)
    shown, said = drawn(entries)
    assert len({entry.label for entry in shown}) == MOST_LINES
    assert said[0].startswith(f"{MOST_LINES} of 200 curves are drawn")
    (front,) = compared_fronts([Entry(e.label, "all", e.curve) for e in entries]).fronts
    assert {point.label for point in front.best} <= {entry.label for entry in shown}
    assert {entry.group for entry in shown} == {entry.group for entry in entries}
    few = entries[:MOST_LINES]
    assert drawn(few) == (few, [])
    figure = overlay_figure(entries, "many")
    assert any(said[0][:40] in text.get_text().replace("\n", " ") for text in figure.texts)


def test_the_legend_names_the_colours_of_the_lines_that_are_drawn() -> None:
    # Families in an order that is not that of the best, which are drawn.
    groups = ("worst", "good", "best")
    entries = [
        Entry(f"{group} {i}", group, replace(entry.curve, rows=[{"keep": 4, **row(at, i)}]))
        for at, group in enumerate(groups)
        for i, entry in enumerate(many(100))
    ]
    entries.sort(key=lambda entry: int(entry.label.split()[1]) < 50 and entry.group == "worst")
    of_group = styles(entries)
    figure = overlay_figure(entries, "many")
    (legend,) = figure.legends
    handles = {
        text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert {name: (line.get_color(), line.get_marker()) for name, line in handles.items()} == of_group


def row(group: int, number: int) -> dict[str, float]:
    """A point of a family, the better the higher its number."""
    return {"rfd_random_v1": 5.0 - group + number / 1000, "psnr": 10.0 + group - number / 1000}


def test_a_figure_of_two_thousand_families_is_no_higher_than_a_page_and_says_what_it_does_not_name() -> None:
    entries = [replace(entry, group=str(at)) for at, entry in enumerate(many(2000))]
    for draw in (pareto_figure, overlay_figure):
        figure = draw(entries, "many", "steps")
        assert figure.get_figheight() < 13
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts() if text.get_text().startswith("steps = ")]
        assert len(names) == MOST_NAMED
        said = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
        assert f"The legend names {MOST_NAMED} of " in said
    assert len(set(styles(entries[:64]).values())) == 64


def test_names_of_a_front_do_not_lie_over_each_other() -> None:
    entries = [
        Entry(
            str(i),
            "g",
            replace(many(1)[0].curve, rows=[{"keep": 4, "rfd_random_v1": 1.0 + i, "psnr": i / 9}]),
        )
        for i in range(100)
    ]
    figure = pareto_figure(entries, "a front of a hundred")
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 10 < len(boxes) < 100
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "Pareto front, kept tokens named where there is room"


def test_a_range_of_many_values_is_coloured_in_bands_that_rise() -> None:
    groups = list(dict.fromkeys(entry.group for entry in many(200)))
    assert len(groups) == 8
    lows = [float(group.partition(" to ")[0]) for group in groups]
    assert lows == sorted(lows)
    assert [low / lows[0] for low in lows] == pytest.approx([100 ** (at / 8) for at in range(8)], rel=0.01)
    assert len({entry.group for entry in many(6)}) == 6, "few values are families of their own"


def test_a_family_has_one_colour_in_mlflow_and_in_the_figures() -> None:
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"optimizer.learning_rate": log_uniform(1e-4, 1e-2), "steps": choice(1, 2)},
        search=Random(trials=30),
        objectives=(mean_psnr(),),
    )
    for family in (None, "steps"):
        families = Families.of(Sweep(**{**vars(sweep), "family": family}))
        colours = {families.name(params): families.colour(params) for params in sweep.choices()}
        assert len(set(colours.values())) == len(colours)


def test_points_are_means_over_seeds_whatever_the_order_of_the_entries() -> None:
    trials = [finished(f"s-{i}", {"steps": "1"}, {4: (float(i), 10.0 * i)}, seed=i) for i in (1, 2)]
    entries = [Entry("one", "g", trial.evaluation()) for trial in trials]
    (point,) = averaged(entries)
    assert (point.loss, point.gain) == (1.5, 15.0)
    assert averaged(entries[::-1]) == [point]


def test_choices_that_differ_in_a_fifth_digit_are_no_repetitions() -> None:
    rates = (1.00001e-3, 1.00002e-3, 1.00002e-3)
    trials = [
        finished(f"s-{i}", {"optimizer.learning_rate": rate}, {4: (1.0, 1.0)}, seed=i)
        for i, rate in enumerate(rates)
    ]
    assert [entry.label for entry in report.entries(SWEEP, trials[:2])] == ["s-0", "s-1"]
    assert [entry.label for entry in report.entries(SWEEP, trials)] == [
        "optimizer.learning_rate=0.001",
        "optimizer.learning_rate=0.001 (s-1)",
        "optimizer.learning_rate=0.001 (s-1)",
    ]


def test_the_table_of_a_terminal_has_room_for_those_that_run_whatever_has_ended() -> None:
    board = Board(SWEEP, "s", 2000)
    for number in range(100):
        board.rows[f"s-{number:03d}"] = TrialRow(state="running" if number in (3, 99) else "finished")
    table = board.table()
    shown = list(table.columns[0].cells)
    assert len(shown) == MOST_ROWS
    assert {"003", "099", "098"} <= set(shown)
    assert table.caption == f"and {100 - MOST_ROWS} trials more"
