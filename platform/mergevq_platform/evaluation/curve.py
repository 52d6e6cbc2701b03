"""The curve of a tokenizer: rFID, probe accuracy and other metrics over kept tokens, with the protocol of the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, ClassVar

from rich.table import Table

from mergevq_platform.evaluation.headline import best_rows, divided
from mergevq_platform.evaluation.note import TABLE_COLUMNS, markdown_table, run_note
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.evaluation.report_files import StoredReport
from mergevq_platform.evaluation.suite_sentences import kernel_title, suite_sentences
from mergevq_platform.evaluation.trends import gain_sentence, trend_sentence
from mergevq_platform.tracking.records import CURVE_BEST_PREFIX

WIDE = 150  # terminal columns that all of a curve needs
NARROW = (
    "keep",
    "psnr",
    "chd_1d",
    "probe_top1_cls",
    "probe_top1_untrained",
    "recovery_accuracy_before",
    "recovery_accuracy",
    "recovery_baseline",
)


# What a paper prints, beside the Fréchet distance with the true and with the recovered source.
HEADLINE = (
    *("psnr", "ssim", "code_usage", "code_entropy_bits", "bits"),
    *("probe_top1_cls", "probe_top1_untrained", "recovery_accuracy"),
)
HEADLINE_FAMILIES = re.compile(r"lpips_\w+|probe_[^_]+_top1_cls")  # by network, by published protocol


@dataclass(frozen=True)
class Curve(StoredReport):
    """Metrics over kept counts. `rows` ascend in `keep`; every metric's name and unit are those of the protocol."""

    called: ClassVar[str] = "a curve written by mergevq evaluate"
    file_name: ClassVar[str] = "curve.json"
    folder: ClassVar[str] = "curve"
    shown_files: ClassVar[tuple[str, ...]] = ("tradeoff.png",)

    run: str
    rows: list[dict[str, float]]
    protocol: dict[str, Any]

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """`curve/<metric>` and `curve_details/<metric>` at step = kept tokens, `curve_best/<metric>` at that of the best."""
        rows, details = {}, {}
        for row in self.rows:
            keep = int(row["keep"])
            rows[keep], details[keep] = divided(row, self._is_headline, axis="keep")
        recorder.curve(rows, details)
        for key, found in best_rows(self.rows, (self.frechet_key, "probe_top1_cls")).items():
            recorder.metrics(int(found["keep"]), {f"{CURVE_BEST_PREFIX}{key}": found[key]})

    def _is_headline(self, key: str) -> bool:
        named = (
            *(self.frechet_key, f"{self.frechet_key}_recovered", self.perturbed_key, self.score_key("kid")),
            *self.ar_probe_keys.values(),
        )
        return key in (*HEADLINE, *named) or HEADLINE_FAMILIES.fullmatch(key) is not None

    def note(self, description: str, figures: Mapping[str, str]) -> str:
        """The best of every goal, the verdict, a narrow table, the trade-off; see `run_note`."""
        shown = {column[0]: column for column in self.shown()}
        first = [key for key in (*self._note_keys(), *shown) if key in shown]
        chosen = set(list(dict.fromkeys(first))[:TABLE_COLUMNS])
        table = markdown_table([column for key, column in shown.items() if key in chosen], self.rows)
        return run_note(
            self.answer(),
            self.verdict(),
            "\n".join(table),
            self.caption(),
            description,
            figure=figures.get("tradeoff.png"),
        )

    def _note_keys(self) -> tuple[str, ...]:
        frechet = (self.frechet_key, f"{self.frechet_key}_recovered")
        probe = ("probe_top1_cls", "probe_top1_untrained")
        return ("keep", *frechet, "psnr", *probe, "recovery_accuracy", "ssim", "lpips_vgg", "bits")

    def answer(self) -> str:
        """The best Fréchet distance, probe and PSNR, and the kept counts that reached them."""
        forms = {
            self.frechet_key: f"Fréchet distance {{:.3g}} (`{self.frechet_key}`)",
            "probe_top1_cls": "probe {:.1f}%",
            "psnr": "PSNR {:.2f} dB",
        }
        best = best_rows(self.rows, forms)
        parts = [
            f"{form.format(best[key][key])} at {best[key]['keep']:.0f}"
            for key, form in forms.items()
            if key in best
        ]
        return f"{', '.join(parts)} kept tokens" if parts else "nothing of it could be measured"

    @property
    def suites(self) -> list[str]:
        """The suites that were measured; files from before there was a choice have both."""
        return self.protocol.get("suites", ["reconstruction", "representation"])

    @property
    def frechet_key(self) -> str:
        """The name of the Fréchet distance of reconstructions with the true source."""
        return self.protocol.get("frechet_key") or f"rfd_{self.protocol['extractor']['name']}"

    @property
    def perturbed_key(self) -> str:
        """The name of the Fréchet distance of reconstructions from perturbed codes (pFID)."""
        return str(self.protocol.get("generability", {}).get("frechet_key", ""))

    def score_key(self, name: str) -> str:
        """The name of a score of reconstructions (`kid`, `density`, `coverage`) with the features of the Fréchet distance."""
        precision = str(self.protocol.get("keys", {}).get("precision", ""))
        return precision.replace("precision", name, 1)

    @property
    def ar_probe_keys(self) -> dict[str, str]:
        """The names of the AR probe's `bits` and of the Fréchet distance of its `samples`; none where it was not measured."""
        keys: dict[str, str] = self.protocol.get("ar_probe", {}).get("keys", {})
        return keys

    def column(self, key: str) -> list[float]:
        """The metric's value at each kept count, ascending."""
        return [row[key] for row in self.rows]

    def verdict(self) -> list[str]:
        """Plain sentences: does the curve go the way the paper says, and do probe and recovery beat their baselines?"""
        if len(self.rows) < 3:
            trend = "fewer than three kept counts: no trend can be told"
            return [trend, *self._of_recovery(), *self._lacking()]
        sentences = []
        claim = "the Fréchet distance falls with more kept tokens"
        sentences += self._trend(claim, self.frechet_key, -1, 0.02)
        sentences += self._trend("PSNR rises with more kept tokens", "psnr", 1, 0.005)
        return [*sentences, *self._of_probe(), *self._of_recovery(), *self._lacking()]

    def _trend(self, claim: str, key: str, expected: int, least: float) -> list[str]:
        points = [(row["keep"], row[key]) for row in self.rows if not math.isnan(row.get(key, math.nan))]
        if len(points) < 3:
            return []
        keeps, values = ([point[side] for point in points] for side in (0, 1))
        return [trend_sentence(claim, keeps, values, expected, least)]

    def _of_probe(self) -> list[str]:
        claim = "the probe rises with fewer kept tokens, as in the paper"
        sentences = self._trend(claim, "probe_top1_cls", -1, 0.02)
        if not sentences:
            return []
        if not sentences[-1].startswith("yes"):
            sentences[-1] += ": on this data fewer tokens do not help the probe"
        elif self._overlaps("probe_top1_cls"):
            said = sentences[-1].removeprefix("yes")
            sentences[-1] = f"not told{said}: the 95% intervals of the best and the worst count overlap"
        if "probe_top1_untrained" in self.rows[0]:
            gain = min(row["probe_top1_cls"] - row["probe_top1_untrained"] for row in self.rows)
            sentences.append(gain_sentence("the probe beats the untrained encoder at every kept count", gain))
        return sentences

    def _overlaps(self, key: str) -> bool:
        rows = [row for row in self.rows if f"{key}_low" in row]
        if not rows:
            return False
        best, worst = max(rows, key=lambda row: row[key]), min(rows, key=lambda row: row[key])
        return best[f"{key}_low"] <= worst[f"{key}_high"]

    def _lacking(self) -> list[str]:
        protocol = self.protocol
        if "representation" in self.suites and not any("probe_top1_cls" in row for row in self.rows):
            # Of files from before the reason was recorded.
            protocol = protocol | {"lacking": {"probe": "no labels"} | protocol.get("lacking", {})}
        return lacking_sentences(protocol)

    def _of_recovery(self) -> list[str]:
        merged = [row for row in self.rows if row["merge_ratio"] > 0 and "recovery_accuracy" in row]
        claims = {
            "recovery_baseline": "source recovery beats its most-frequent-slot baseline",
            "recovery_accuracy_before": "fine-tuning raised source recovery",
        }
        return [
            gain_sentence(
                f"{claim} at every kept count below N",
                min(row["recovery_accuracy"] - row[other] for row in merged),
            )
            for other, claim in claims.items()
            if merged and all(other in row for row in merged)
        ]

    def table(self, width: int = 120) -> Table:
        """The curve for a terminal of so many columns; a narrow one gets the columns that matter most."""
        table = Table(title=f"{self.run}: trade-off over kept tokens", caption=self.caption())
        columns = self.shown()
        if width < WIDE:
            first = (*NARROW, self.frechet_key, self.perturbed_key, *self.ar_probe_keys.values())
            columns = [column for column in columns if column[0] in first]
        for _, title, _ in columns:
            table.add_column(title.replace(" ", "\n", 1), justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(f"{row[key]:{form}}" if key in row else "" for key, _, form in columns))
        return table

    def markdown(self) -> str:
        """The curve as a Markdown table."""
        return "\n".join([*markdown_table(self.shown(), self.rows), "", self.caption()])

    def csv(self) -> str:
        """All rows and metrics, full precision."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [",".join(keys)] + [",".join(repr(row.get(key, "")) for key in keys) for row in self.rows]
        return "\n".join(lines) + "\n"

    def shown(self) -> list[tuple[str, str, str]]:
        """(key, title, format) of the columns that tables show."""
        frechet, keys = self.frechet_key, self.protocol.get("keys", {})
        every = [
            ("keep", "kept", ".0f"),
            ("merge_ratio", "merged", ".0%"),
            (frechet, frechet, ".3f"),
            (f"{frechet}_recovered_before", "… recovered before", ".3f"),
            (f"{frechet}_recovered", "… recovered", ".3f"),
            (self.perturbed_key, self.perturbed_key, ".3f"),
            (f"{self.perturbed_key}_source", "… of the source", ".3f"),
            ("chd_1d", "code histograms", ".3f"),
            ("chd_1d_halves", "… of halves", ".3f"),
            (self.ar_probe_keys.get("bits", ""), "AR probe bits", ".1f"),
            (self.ar_probe_keys.get("samples", ""), f"AR probe g{frechet[1:]}", ".3f"),
            (keys.get("spatial_frechet", ""), "… of inner maps", ".3f"),
            (keys.get("inception_score", ""), "Inception score", ".1f"),
            (keys.get("precision", ""), "precision", ".3f"),
            (keys.get("recall", ""), "recall", ".3f"),
            (self.score_key("kid"), kernel_title(self.score_key("kid"), "reconstruction_kid"), ".5f"),
            (self.score_key("density"), "density", ".3f"),
            (self.score_key("coverage"), "coverage", ".3f"),
            ("psnr", "PSNR dB", ".2f"),
            ("ssim", "SSIM", ".3f"),
            ("lpips_vgg", "LPIPS", ".3f"),
            ("probe_top1_cls", "probe cls %", ".1f"),
            ("probe_top1_mean", "probe mean %", ".1f"),
            *((f"probe_{name}_top1_cls", f"{name} probe %", ".1f") for name in ("mergevq", "mae", "dinov2")),
            ("knn_top1_cls", "k-NN cls %", ".1f"),
            ("probe_top1_untrained", "untrained %", ".1f"),
            ("recovery_accuracy_before", "recovery before %", ".1f"),
            ("recovery_accuracy", "recovery %", ".1f"),
            ("recovery_baseline", "baseline %", ".1f"),
            ("code_entropy_bits", "code bits", ".2f"),
            ("bits", "bits/image", ".0f"),
        ]
        return [column for column in every if any(column[0] in row for row in self.rows)]

    def weights(self) -> str:
        """The weights that were measured, in words."""
        p = self.protocol
        if p["step"] is None:
            return f"weights as saved in {PurePath(p['checkpoint']).name}"
        return f"{'EMA' if p['ema'] else 'raw'} weights of step {p['step']:,}"

    def caption(self) -> str:
        """Extractor, data, counts and teacher, in one paragraph."""
        p = self.protocol
        parts = []
        if "reconstruction" in self.suites:
            parts.append(
                f"{self.frechet_key}: Fréchet distance between {p['images']} images of '{p['split']}' and their reconstructions, "
                f"{p['extractor']['description']}; true source unless marked recovered (source predicted)."
            )
        parts += suite_sentences(p)
        parts.append(f"Measured with {self.weights()}, on data {p['data_fingerprint'][:12]}.")
        if p.get("probe"):
            interval = "95% Wilson interval in the JSON"
            parts.append(
                f"Probe: {p['probe']['kind']}, {p['probe']['train_images']} training images, {interval}; "
                f"majority class {p['majority_top1']:.1f}%."
            )
            if without := p["probe"].get("unlabelled"):
                parts.append(
                    f"Without a label, and so not in it: {without['train']:,} training and {without['test']:,} other images."
                )
        parts += [f"No {what}: {reason}." for what, reason in p.get("lacking", {}).items()]
        if p.get("caveat"):
            parts.append(p["caveat"])
        return " ".join(parts)


def lacking_sentences(protocol: dict[str, Any]) -> list[str]:
    """Sentences on the metrics that the data did not allow, with reasons, and on the images left out."""
    left_out = [
        f"{len(rows):,} image{'s' * (len(rows) > 1)} of '{split}' cannot be decoded: left out"
        for split, rows in protocol.get("left_out", {}).items()
    ]
    return [f"{reason}: no {what}" for what, reason in protocol.get("lacking", {}).items()] + left_out


def tuned_curve(before: Curve, after: Curve) -> Curve:
    """`after` with the metrics of Source Recovery from `before` beside its own, as `<key>_before`; both at the same kept counts."""
    keys = ("recovery_accuracy", "psnr_recovered", f"{after.frechet_key}_recovered")
    rows = [
        row | {f"{key}_before": old[key] for key in keys if key in old}
        for old, row in zip(before.rows, after.rows, strict=True)
    ]
    weights = {key: before.protocol[key] for key in ("checkpoint", "weights_sha256")}
    return replace(after, rows=rows, protocol=after.protocol | {"before": weights})


def six_counts(candidates: Sequence[int], grid_tokens: int, reachable: range) -> tuple[int, ...]:
    """Six kept counts for a curve: from the smallest trained one (or N/8) to N, about evenly in log K."""
    low = max(reachable.start, min(min(candidates), grid_tokens // 8))
    return tuple(sorted({round(low * (grid_tokens / low) ** (i / 5)) for i in range(6)}))
