"""The numbers of a model in the Hub's own format (`model-index`), where their names mean what everyone's mean.

A Fréchet distance is called FID there, so only the standard Inception's goes in; a probe of features that have seen the labels
is no measure of representation and stays out. All others are in the card's table, under their own names.
"""

from __future__ import annotations

import re
from typing import Any

from mergevq.hub import on_hub, parse_address, short_name
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport

RECONSTRUCTION = {"type": "image-to-image", "name": "Reconstruction"}
REPRESENTATION = {"type": "image-classification", "name": "Linear probe"}
GENERATION = {"type": "unconditional-image-generation", "name": "Class-conditional generation"}

# Key of a row -> (the Hub's type, name). Features of another network have other keys.
OF_RECONSTRUCTION = {
    "rfid": ("fid", "rFID"),
    "psnr": ("psnr", "PSNR (dB)"),
    "ssim": ("ssim", "SSIM"),
    "lpips_vgg": ("lpips", "LPIPS (VGG)"),
}
OF_REPRESENTATION = {"probe_top1_cls": ("accuracy", "Linear probe top-1 (%)")}
OF_GENERATION = {
    "gfid": ("fid", "gFID"),
    "inception_score": ("inception_score", "Inception score"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
}


def model_index(name: str, report: Curve | GeneratorReport | None) -> list[dict[str, Any]]:
    """The entry of one model; nothing without numbers."""
    if isinstance(report, Curve):
        data = _dataset(report.protocol["data"], report.protocol["split"])
        parts = [(RECONSTRUCTION, _of_counts(report, OF_RECONSTRUCTION))]
        if not report.protocol.get("caveat"):
            parts.append((REPRESENTATION, _of_counts(report, OF_REPRESENTATION)))
    elif report is not None:
        data = _dataset(report.protocol["data"], report.protocol["reference"]["split"])
        parts = [(GENERATION, _of_scales(report))]
    else:
        return []
    results = [{"task": task, "dataset": data, "metrics": metrics} for task, metrics in parts if metrics]
    return [{"name": name, "results": results}] if results else []


def _of_counts(curve: Curve, known: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        _metric(row[key], *known[key], f"{row['keep']:.0f} kept tokens", kept_tokens=int(row["keep"]))
        for key in known
        for row in curve.rows
        if key in row
    ]


def _of_scales(report: GeneratorReport) -> list[dict[str, Any]]:
    return [
        _metric(row[key], *OF_GENERATION[key], f"guidance {row['scale']:g}", guidance_scale=row["scale"])
        for key in OF_GENERATION
        for row in report.rows
        if key in row
    ]


def _metric(value: float, kind: str, name: str, at: str, **args: Any) -> dict[str, Any]:
    return {"type": kind, "value": round(value, 4), "name": f"{name}, {at}", "args": args}


def _dataset(place: str, split: str) -> dict[str, Any]:
    name = short_name(place)
    if not on_hub(place):
        return {"name": name, "type": re.sub(r"[^a-z0-9._-]+", "-", name.lower()), "split": split}
    address = parse_address(place, kind="dataset")
    found = {"name": name, "type": address.repository, "split": split}
    return found | ({"revision": address.revision} if address.revision else {})
