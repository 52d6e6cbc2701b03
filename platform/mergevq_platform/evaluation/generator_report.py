"""The report of a generator: a row of metrics for every guidance scale, its references, the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from mergevq_platform.evaluation.curve import lacking_sentences
from mergevq_platform.evaluation.headline import best_rows, divided
from mergevq_platform.evaluation.note import TABLE_COLUMNS, run_note
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.evaluation.report_files import StoredReport
from mergevq_platform.evaluation.suite_sentences import kernel_title, suite_sentences
from mergevq_platform.tracking.records import SCALE_BEST_PREFIX, SCALE_DETAILS_PREFIX, SCALE_KEY, SCALE_PREFIX

NAMES = {
    "reconstructed": "reconstructions (ceiling)",
    "by_position": "codes by position (baseline)",
    "untrained": "untrained generator (baseline)",
    "real": "real images",
}
CLEARLY = 0.5  # of a baseline's distance, or less
NOTE = "cfg_curve: the charts' x axis (Step) is 100 times the guidance scale; 100 is no guidance."


@dataclass(frozen=True)
class GeneratorReport(StoredReport):
    """Metrics over guidance scales; `rows` ascend in `scale`, 1 (no guidance) is always among them."""

    called: ClassVar[str] = "a generator's report"
    file_name: ClassVar[str] = "report.json"
    folder: ClassVar[str] = "generation"
    shown_files: ClassVar[tuple[str, ...]] = ("samples.png", "neighbours.png", "guidance.png")

    run: str
    rows: list[dict[str, float]]
    references: dict[str, dict[str, float]]
    protocol: dict[str, Any]

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """`cfg_curve/<metric>` and the scale at step = 100 x scale, `cfg_curve_best/<metric>` at that of the best, references as
        metrics at the checkpoint's step; details under prefixes of their own."""
        for row in self.rows:
            rows, details = divided(row, self._is_headline, axis="scale")
            values = {f"{SCALE_PREFIX}{key}": value for key, value in rows.items()}
            values |= {f"{SCALE_DETAILS_PREFIX}{key}": value for key, value in details.items()}
            recorder.metrics(round(100 * row["scale"]), {SCALE_KEY: row["scale"]} | values)
        for key, found in best_rows(self.rows, (self.frechet_key,)).items():
            recorder.metrics(round(100 * found["scale"]), {f"{SCALE_BEST_PREFIX}{key}": found[key]})
        step = self.protocol["generator"]["step"]
        for name in NAMES:
            if name in self.references:
                rows, details = divided(self.references[name], self._is_headline)
                values = {f"cfg_reference/{key}_{name}": value for key, value in rows.items()}
                values |= {f"cfg_reference_details/{key}_{name}": value for key, value in details.items()}
                recorder.metrics(step, values)

    def _is_headline(self, key: str) -> bool:
        names, keys = ("frechet", "inception_score", "precision", "recall", "kid"), self.protocol["keys"]
        return key in ("class_top1", *(keys[name] for name in names if name in keys))

    def note(self, description: str, figures: Mapping[str, str]) -> str:
        """The best of every goal, the verdict, a narrow table, the metrics over guidance scales; see `run_note`."""
        inner = self.protocol["keys"].get("spatial_frechet")
        columns = [
            column for column in self.columns() if column[0] != inner and not column[0].endswith("_second")
        ]
        figure = figures.get("guidance.png") or figures.get("samples.png")
        table = "\n".join(self._rows_of(columns[: TABLE_COLUMNS - 1]))
        return run_note(
            self.answer(), self.verdict(), table, NOTE, self.caption(), description, figure=figure
        )

    def answer(self) -> str:
        """The best Fréchet distance and its guidance scale, and what else was reached there."""
        best, key = self.best, self.frechet_key
        parts = [f"Fréchet distance {best[key]:.3g} (`{key}`)"] if key in best else []
        if "class_top1" in best:
            parts.append(f"class recognised {best['class_top1']:.1f}%")
        return f"{', '.join(parts) or 'measured'} at {_scale_name(best['scale'])}, {self.kept()}"

    @property
    def frechet_key(self) -> str:
        """The name of the Fréchet distance of generated images."""
        return str(self.protocol["keys"]["frechet"])

    @property
    def best(self) -> dict[str, float]:
        """The row of the smallest Fréchet distance; without any, that without guidance."""
        measured = [row for row in self.rows if self.frechet_key in row]
        return min(measured, key=lambda row: row[self.frechet_key], default=self.without_guidance)

    @property
    def without_guidance(self) -> dict[str, float]:
        """The row at scale 1."""
        return next(row for row in self.rows if row["scale"] == 1)

    def verdict(self) -> list[str]:
        """Plain sentences: is it better than its baselines, are classes recognised, does it copy?"""
        p, plain, best = self.protocol, self.without_guidance, self.best
        sentences = []
        for name in ("by_position", "untrained"):
            if name in self.references and self.frechet_key in plain:
                theirs = self.references[name][self.frechet_key]
                share = plain[self.frechet_key] / theirs
                word = "yes" if share < CLEARLY else "NO"
                sentences.append(
                    f"{word}: without guidance its Fréchet distance is {share:.0%} of that of {NAMES[name].split(' (')[0]} "
                    f"({plain[self.frechet_key]:.3g} against {theirs:.3g})"
                )
        if "class_probe" in p:
            clearest = max(self.rows, key=lambda row: row["class_top1"])  # guidance trades distance for class
            word = "yes" if clearest["class_top1_low"] > 2 * p["chance_top1"] else "NO"
            guided = (
                f", {clearest['class_top1']:.1f}% at scale {clearest['scale']:g}"
                if clearest["scale"] != 1
                else ""
            )
            sentences.append(
                f"{word}: a probe that learned from real pictures recognises the class of {plain['class_top1']:.1f}% without guidance"
                f"{guided} (chance {p['chance_top1']:.1f}%, real pictures "
                f"{p['class_probe']['real_top1']:.1f}%)"
            )
        if "neighbour_ratio" in best:
            word = "yes" if best["neighbour_ratio"] > 0.8 else "NO"
            sentences.append(
                f"{word}: it does not copy: its pictures are {best['neighbour_ratio']:.2f} times as far from their nearest training "
                "pictures as reconstructions of held-out pictures are"
            )
        return sentences + lacking_sentences(p)

    def columns(self) -> list[tuple[str, str, str]]:
        """(key, title, format) of what is shown."""
        keys = self.protocol["keys"]
        every = [
            (keys["frechet"], "Fréchet distance", ".3f"),
            (keys.get("spatial_frechet", ""), "… of inner maps", ".3f"),
            (keys["precision"], "precision", ".3f"),
            (keys["recall"], "recall", ".3f"),
            (keys.get("kid", ""), kernel_title(keys.get("kid", ""), "kid"), ".5f"),
            (keys.get("density", ""), "density", ".3f"),
            (keys.get("coverage", ""), "coverage", ".3f"),
            (keys["inception_score"], "Inception score", ".1f"),
            ("class_top1", "class recognised %", ".1f"),
            ("neighbour_ratio", "distance to neighbour ×", ".2f"),
            ("pictures_per_second", "images/s", ".1f"),
        ]
        return [column for column in every if any(column[0] in row for row in self.rows)]

    def lines(self) -> list[tuple[str, dict[str, float]]]:
        """(what, its metrics), guidance scales first, then references."""
        found = [(_scale_name(row["scale"]), row) for row in self.rows]
        return found + [(NAMES[name], self.references[name]) for name in NAMES if name in self.references]

    def table(self, width: int = 120) -> Table:
        """The report for a terminal."""
        del width
        table = Table(title=f"{self.run}: images at {self.kept()}", caption=self.caption())
        table.add_column("", no_wrap=True)
        for _, title, _ in self.columns():
            table.add_column(title.replace(" ", "\n", 1), justify="right", no_wrap=True)
        for what, row in self.lines():
            table.add_row(
                what, *(format(row[key], form) if key in row else "" for key, _, form in self.columns())
            )
        return table

    def markdown(self) -> str:
        """The report as a Markdown table."""
        return "\n".join([*self._rows_of(self.columns()), "", self.caption()])

    def _rows_of(self, columns: Sequence[tuple[str, str, str]]) -> list[str]:
        text = [
            "| | " + " | ".join(title for _, title, _ in columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for what, row in self.lines():
            cells = (format(row[key], form) if key in row else "" for key, _, form in columns)
            text.append(f"| {what} | " + " | ".join(cells) + " |")
        return text

    def kept(self) -> str:
        """What was generated: kind, kept tokens, steps."""
        p = self.protocol
        text = str(p["kind"]).replace("_", " ")
        if p["kept_tokens"]:
            text += f", {p['kept_tokens']} kept tokens"
        if "budget" in p:
            text += f", each its own kept count (mean {p['budget']:.4g}, {p['allocator']})"
        if p["steps"]:
            text += f", {p['steps']} steps"
        return text

    def caption(self) -> str:
        """What the numbers are, in one paragraph."""
        p = self.protocol
        probe = p.get("class_probe")
        learned = f"Class: {probe['kind']}, {probe['train_images']} training images. " if probe else ""
        if "reconstructed_mean" in p:
            learned = f"Reconstructions keep {p['reconstructed_mean']:.4g} tokens on the mean. {learned}"
        lacking = "".join(f" No {what}: {reason}." for what, reason in p.get("lacking", {}).items())
        more = "".join(f" {sentence}" for sentence in suite_sentences(p))
        return (
            f"{self.distances_sentence()} {learned}Distance to neighbour: median over images, as a multiple of that of "
            f"reconstructed held-out images; {p['neighbours']}. {self.samples_sentence()}{lacking}{more}"
        )

    def distances_sentence(self) -> str:
        """What Fréchet distance, precision and recall are of."""
        p = self.protocol
        return (
            f"{self.frechet_key}: Fréchet distance of {p['images']} images, classes in turn, to {p['reference']['images']} real ones of "
            f"'{p['reference']['split']}', {p['extractor']['description']}; precision and recall of the same features (k = 3)."
        )

    def samples_sentence(self) -> str:
        """How the images were generated."""
        p = self.protocol
        return (
            f"{p['guidance']['schedule']} guidance; EMA weights of step {p['generator']['step']:,}; tokenizer "
            f"{p['tokenizer']['sha256'][:12]}; source {p['source']}."
        )


def _scale_name(scale: float) -> str:
    return "no guidance (scale 1)" if scale == 1 else f"guidance scale {scale:g}"
