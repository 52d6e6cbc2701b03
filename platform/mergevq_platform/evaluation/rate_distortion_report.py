"""The report of allocators: rate–distortion of each beside one count for all images, with the protocol of the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from mergevq_platform.evaluation.curve import lacking_sentences
from mergevq_platform.evaluation.headline import divided
from mergevq_platform.evaluation.note import run_note
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.evaluation.report_files import StoredReport
from mergevq_platform.tracking.records import ALLOCATION_DETAILS_PREFIX, ALLOCATION_KEY, ALLOCATION_PREFIX

FIXED, ORACLE = "fixed", "oracle"
HEADLINE = ("kept", "psnr", "probe_top1_cls", "saved_tokens")
Column = tuple[str, str, str]  # key, title, format


@dataclass(frozen=True)
class RateDistortionReport(StoredReport):
    """Metrics of allocators at mean kept counts.

    `rows` ascend in `keep`, one count of the menu for all images; `allocators` holds rows that ascend in `budget`, the wanted
    mean, by allocator; `counts` how many images keep each count, by allocator and budget.
    """

    called: ClassVar[str] = "a report of allocators written by mergevq evaluate --budget"
    file_name: ClassVar[str] = "rate_distortion.json"
    folder: ClassVar[str] = "rate_distortion"
    shown_files: ClassVar[tuple[str, ...]] = ("rate_distortion.png", "counts.png")

    run: str
    rows: list[dict[str, float]]
    allocators: dict[str, list[dict[str, float]]]
    counts: dict[str, dict[str, dict[str, int]]]
    protocol: dict[str, Any]

    @property
    def frechet_key(self) -> str:
        """The name of the Fréchet distance of reconstructions."""
        return str(self.protocol["frechet_key"])

    def at(self, allocator: str, budget: float) -> dict[str, float] | None:
        """The row of an allocator at a wanted mean; None where it has none."""
        return next((row for row in self.allocators.get(allocator, ()) if row["budget"] == budget), None)

    def histogram(self, allocator: str, budget: float) -> dict[int, int]:
        """How many images keep each count of the menu."""
        found = self.counts[allocator][f"{budget:g}"]
        return {count: found.get(str(count), 0) for count in self.protocol["menu"]}

    def lines(self) -> Iterator[tuple[str, dict[str, float]]]:
        """(allocator, row) of all rows, the budgets of each in order."""
        for name, rows in self.allocators.items():
            for row in rows:
                yield name, row

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """`allocation/<metric>_<allocator>` at step = wanted mean, details under a prefix of their own."""
        headline = (*HEADLINE, self.frechet_key)
        by_budget: dict[float, dict[str, float]] = {}
        for name, row in self.lines():
            shown, details = divided(row, headline.__contains__, axis="budget")
            short = metric_name(name)
            values = by_budget.setdefault(row["budget"], {ALLOCATION_KEY: row["budget"]})
            values |= {f"{ALLOCATION_PREFIX}{key}_{short}": value for key, value in shown.items()}
            values |= {f"{ALLOCATION_DETAILS_PREFIX}{key}_{short}": value for key, value in details.items()}
        for budget, values in sorted(by_budget.items()):
            recorder.metrics(round(budget), values)

    def note(self, description: str, figures: Mapping[str, str]) -> str:
        """The best allocator, the verdict, a narrow table, rate and distortion; see `run_note`."""
        table = "\n".join(self._markdown_rows(self.columns()[:6]))
        figure = figures.get("rate_distortion.png")
        return run_note(self.answer(), self.verdict(), table, self.caption(), description, figure=figure)

    def answer(self) -> str:
        """The allocator without knowledge of the reconstructions that saves the largest share, and the oracle beside it."""
        said = []
        for names in ([name for name in self.allocators if name not in (FIXED, ORACLE)], [ORACLE]):
            rows = [
                (name, row) for name in names for row in self.allocators.get(name, ()) if "saved_share" in row
            ]
            if rows:
                name, row = max(rows, key=lambda found: found[1]["saved_share"])
                said.append(f"{name} {_saves(row)} at a mean of {row['kept']:.1f}")
        return "; ".join(said) or "one count for all images alone was measured"

    def verdict(self) -> list[str]:
        """A sentence an allocator: what it saves at equal quality, with its interval, and its share of the oracle's gain."""
        sentences = [self._verdict_of(name) for name in self.allocators if name != FIXED]
        return [*sentences, *lacking_sentences(self.protocol)]

    def _verdict_of(self, name: str) -> str:
        rows = self.allocators[name]
        saves = [row["saved_tokens_low"] > 0 for row in rows]
        word = "yes" if all(saves) else "partly" if any(saves) else "NO"
        claim = "saves tokens at equal PSNR" if any(saves) else "saves no tokens at equal PSNR"
        clauses = [f"{'' if saved else 'NO, '}{_clause(row)}" for row, saved in zip(rows, saves, strict=True)]
        return f"{word}: {name} {claim}, with 95% intervals: {'; '.join(clauses)}"

    def columns(self) -> list[Column]:
        """(key, title, format) of the columns that tables show, but the allocator's."""
        every = [
            ("budget", "wanted", "g"),
            ("kept", "kept", ".2f"),
            ("psnr", "PSNR dB", ".2f"),
            (self.frechet_key, self.frechet_key, ".3f"),
            ("probe_top1_cls", "probe cls %", ".1f"),
            ("saved_tokens", "tokens saved", "+.1f"),
            ("saved_share", "share saved", "+.0%"),
            ("saved_tokens_mse", "at equal MSE", "+.1f"),
            ("psnr_gain", "gain dB", "+.2f"),
            ("oracle_share", "of oracle's", ".0%"),
            *((key, "LPIPS", ".4f") for key in sorted(self._keys()) if key.startswith("lpips_")),
            ("bits", "bits codes", ".0f"),
            ("bits_count", "bits count", ".1f"),
            ("bits_source", "bits source", ".0f"),
            ("jpeg_rank_correlation", "JPEG rank correlation", "+.2f"),
        ]
        return [column for column in every if column[0] in self._keys()]

    def _keys(self) -> set[str]:
        return {key for _, row in self.lines() for key in row}

    def table(self, width: int = 120) -> Table:
        """The report for a terminal; rows of one allocator stand together."""
        del width
        table = Table(title=f"{self.run}: allocators at mean kept tokens", caption=self.caption())
        table.add_column("allocator", no_wrap=True)
        for _, title, _ in self.columns():
            table.add_column(title.replace(" ", "\n", 1), justify="right", no_wrap=True)
        last = list(self.allocators.values())
        ends = {id(rows[-1]) for rows in last if rows}
        for name, row in self.lines():
            cells = (_number(row[key], form) if key in row else "" for key, _, form in self.columns())
            table.add_row(name, *cells, end_section=id(row) in ends)
        return table

    def markdown(self) -> str:
        """The report as a Markdown table."""
        return "\n".join([*self._markdown_rows(self.columns()), "", self.caption()])

    def _markdown_rows(self, columns: list[Column]) -> list[str]:
        lines = ["| allocator | " + " | ".join(title for _, title, _ in columns) + " |"]
        lines.append("|---|" + "---:|" * len(columns))
        for name, row in self.lines():
            cells = (_number(row[key], form) if key in row else "" for key, _, form in columns)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return lines

    def csv(self) -> str:
        """All rows and metrics, full precision."""
        keys = list(dict.fromkeys(key for _, row in self.lines() for key in row))
        lines = [",".join(["allocator", *keys])]
        lines += [
            ",".join([name, *(repr(row[key]) if key in row else "" for key in keys)])
            for name, row in self.lines()
        ]
        return "\n".join(lines) + "\n"

    def caption(self) -> str:
        """Extractor, data, calibration, equal quality and bits, in one paragraph."""
        p = self.protocol
        said = [
            f"{p['images']:,} images of '{p['split']}', data {p['data_fingerprint'][:12]}; each keeps a count of {_listed(p['menu'])}; "
            f"calibrated on {p['calibration']['images']:,} images of '{p['calibration']['split']}'.",
            f"{self.frechet_key}: {p['extractor']['description']}; true source.",
            p["equal_quality"],
            p["bits"],
        ]
        if p.get("probe"):
            said.append(
                f"Probe: {p['probe']['kind']}, {p['probe']['train_images']} training images; {p['probe']['tokens']}."
            )
        said += [f"No {what}: {reason}." for what, reason in p.get("lacking", {}).items()]
        return " ".join([*said, *([p["caveat"]] if p.get("caveat") else [])])


def metric_name(allocator: str) -> str:
    """An allocator as part of a metric's name, where a colon cannot stand: `learned:RUN` is `learned_RUN`."""
    return allocator.replace(":", "_")


def _saves(row: Mapping[str, float]) -> str:
    low, high = row["saved_tokens_low"], row["saved_tokens_high"]
    word = "saves" if low > 0 else "saves no tokens:"
    saved, *interval = (_number(value, "+.1f") for value in (row["saved_tokens"], low, high))
    share = _number(row["saved_share"], "+.0%")
    return f"{word} {share} of the tokens at equal PSNR ({saved}, 95% interval {' to '.join(interval)})"


def _clause(row: Mapping[str, float]) -> str:
    low, high, saved = (
        _number(row[key], "+.1f") for key in ("saved_tokens_low", "saved_tokens_high", "saved_tokens")
    )
    said = [f"{low} to {high}", f"{_number(row['psnr_gain'], '+.2f')} dB"]
    if "oracle_share" in row:
        said.append(f"{_number(row['oracle_share'], '.0%')} of the oracle's gain")
    if row["saved_tokens_low"] > 0 and row["psnr_gain_blind_low"] <= 0:
        said.append("no more than a mixture of two counts that is blind to the images")
    return f"{saved} at a mean of {row['kept']:.1f} ({', '.join(said)})"


def _number(value: float, form: str) -> str:
    """A number in a format, without a sign where it rounds to zero: -0.04 saves no less than 0.04 to one decimal."""
    text = f"{value:{form}}"
    return text if text.strip("+-0.%") else text.lstrip("+-")


def _listed(menu: list[int]) -> str:
    return ", ".join(map(str, menu))
