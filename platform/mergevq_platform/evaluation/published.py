"""The row that a paper prints of a tokenizer or a generator, with its protocol, and what is missing of it and why.

A column bears the name that its numbers have earned: rFID and gFID are the standard Inception's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport

IMAGES = 50_000  # of published Fréchet distances, reconstructions and samples alike
GIVE_INCEPTION = "give --inception pt_inception-2015-12-05-6726825d.pth"

PUBLISHED_PROBE = re.compile(r"probe_([^_]+)_top1_cls")  # by the protocol's name

Column = tuple[str, str, str]  # key, title, format


@dataclass(frozen=True)
class PublishedTable:
    """Rows of published metrics; `missing` says what a paper would have beside them, `protocol` what they are."""

    title: str
    first: str  # what the rows run over
    rows: list[tuple[str, dict[str, float]]]
    columns: list[Column]
    missing: list[str]
    protocol: str

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, caption=self.protocol)
        table.add_column(self.first, no_wrap=True)
        for _, title, _ in self.columns:
            table.add_column(title, justify="right", no_wrap=True)
        for name, row in self.rows:
            table.add_row(name, *(_cell(row, column) for column in self.columns))
        return table

    def markdown(self) -> str:
        """As a Markdown table with its protocol and what is missing."""
        head = [
            f"| {self.first} | " + " | ".join(title for _, title, _ in self.columns) + " |",
            "|---|" + "---:|" * len(self.columns),
        ]
        lines = [
            f"| {name} | " + " | ".join(_cell(row, column) for column in self.columns) + " |"
            for name, row in self.rows
        ]
        return "\n".join(
            [*head, *lines, "", self.protocol, "", *(f"- {sentence}" for sentence in self.missing)]
        )


def published(report: object) -> PublishedTable | None:
    """The published row of a report; None of a kind that has none: of a probe or a fine-tuning, top-1 is all."""
    match report:
        case Curve():
            return published_tokenizer(report)
        case GeneratorReport():
            return published_generator(report)
        case _:
            return None


def published_tokenizer(curve: Curve) -> PublishedTable:
    """Fréchet distance, PSNR, SSIM, LPIPS, code usage and probe of a tokenizer, at every kept count."""
    p, rows = curve.protocol, curve.rows
    frechet = curve.frechet_key
    lpips = sorted({key for row in rows for key in row if key.startswith("lpips_")})
    probes = {
        key: found[1]
        for row in rows
        for key in sorted(row)
        if (found := PUBLISHED_PROBE.fullmatch(key)) is not None
    }
    every: list[Column] = [
        (frechet, _frechet_title("r", frechet), ".3f"),
        (curve.perturbed_key, _perturbed_title(curve.perturbed_key), ".3f"),
        ("psnr", "PSNR dB", ".2f"),
        ("ssim", "SSIM", ".3f"),
        *((key, f"LPIPS ({key.removeprefix('lpips_')})", ".3f") for key in lpips),
        ("code_usage", "code usage %", ".1f"),
        ("probe_top1_cls", "probe % (exact)", ".1f"),
        *((key, f"probe % ({protocol})", ".1f") for key, protocol in probes.items()),
    ]
    columns = _present(every, rows)
    keys = {key for key, _, _ in columns}
    missing = _of_frechet("rFID", frechet, keys, p.get("images", 0), p["extractor"]["description"])
    if not lpips:
        missing.append("no LPIPS: the recipe names no weights of it: set evaluation.lpips")
    if "ssim" not in keys:
        missing.append(
            f"no SSIM: {p.get('lacking', {}).get('SSIM', 'the suite reconstruction was not asked for')}"
        )
    if not probes:
        reason = p.get("lacking", {}).get("probe", "none was asked for: give --probe mergevq, mae or dinov2")
        missing.append(f"no published probe: {reason}; the exact one is this platform's own protocol")
    if p.get("caveat"):
        missing.append(str(p["caveat"]))
    return PublishedTable(
        f"{curve.run}: as a paper prints it",
        "tokens",
        [(f"{row['keep']:.0f}", row) for row in rows],
        columns,
        missing,
        curve.caption(),
    )


def published_generator(report: GeneratorReport) -> PublishedTable:
    """gFID, sFID, Inception score, precision and recall of a generator, without guidance and at its best scale."""
    p, keys, best = report.protocol, report.protocol["keys"], report.best
    frechet = report.frechet_key
    rows = [("without CFG", report.without_guidance)]
    guided = [row for row in report.rows if row["scale"] != 1]
    missing: list[str] = []
    if guided:
        measured = [row for row in guided if frechet in row]
        chosen = min(measured, key=lambda row: row[frechet], default=guided[0])
        rows.append((f"with CFG, scale {chosen['scale']:g}", chosen))
        missing.append(
            f"the guidance scale is the best of {len(guided)} by the very distance that is printed: print the curve beside it"
        )
        if best["scale"] == 1:
            missing.append("no guidance scale is better than none")
    else:
        missing.append("no numbers with CFG: no scale but 1 was measured: give --cfg 1.5 2 3")
    every: list[Column] = [
        (frechet, _frechet_title("g", frechet), ".3f"),
        (keys.get("spatial_frechet", ""), _titled("sFID", keys.get("spatial_frechet", ""), "gsfid"), ".3f"),
        (keys["inception_score"], _titled("IS", keys["inception_score"], "inception_score"), ".1f"),
        (keys["precision"], _titled("precision", keys["precision"], "precision"), ".3f"),
        (keys["recall"], _titled("recall", keys["recall"], "recall"), ".3f"),
    ]
    columns = _present(every, [row for _, row in rows])
    present = {key for key, _, _ in columns}
    missing = _of_frechet("gFID", frechet, present, p["images"], p["extractor"]["description"]) + missing
    for title, key in (("sFID", "spatial_frechet"), ("Inception score", "inception_score")):
        if keys.get(key, "") not in present:
            missing.append(f"no {title}: the Inception of FID alone has it: {GIVE_INCEPTION}")
    if p["reference"]["images"] < IMAGES:
        missing.append(
            f"the reference is {p['reference']['images']:,} images of '{p['reference']['split']}', not the statistics of a training "
            "set that papers take: compare within this protocol"
        )
    # Not the caption: classes and neighbours, which it explains, are in no column.
    said = f"{report.distances_sentence()} {report.kept()}; {report.samples_sentence()}"
    return PublishedTable(f"{report.run}: as a paper prints it", "", rows, columns, missing, said)


def _of_frechet(title: str, key: str, present: set[str], images: int, description: str) -> list[str]:
    """What keeps the Fréchet distance from being the published one."""
    if key not in present:
        return [f"no {title}: the suite reconstruction was not asked for, or the set has too few images"]
    said = []
    if key != title.lower():
        said.append(f"no {title}: {key} has {description}: {GIVE_INCEPTION}")
    if images < IMAGES:
        said.append(
            f"{images:,} images, where published {title} has {IMAGES:,}: the distance depends on their number"
        )
    return said


def _frechet_title(of: str, key: str) -> str:
    return f"{of}FID" if key == f"{of}fid" else key


def _perturbed_title(key: str) -> str:
    return "pFID" if key == "pfid" else key


def _titled(title: str, key: str, standard: str) -> str:
    # Of other features a score bears their name.
    return title if key == standard else f"{title} ({key.removeprefix(standard).lstrip('_')})"


def _present(columns: Sequence[Column], rows: Sequence[Mapping[str, float]]) -> list[Column]:
    return [column for column in columns if column[0] and any(column[0] in row for row in rows)]


def _cell(row: Mapping[str, float], column: Column) -> str:
    key, _, form = column
    return f"{row[key]:{form}}" if key in row else ""
