"""Descriptions of a code set for the terminal: splits, kept counts, tokenizer, allocator, use of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mergevq.metrics.codes import CodeUsage
from mergevq_platform import figures
from mergevq_platform.codes.codeset import CodeSet, open_codes
from mergevq_platform.codes.manifest import CodeAllocation, CountHistogram, read_manifest
from mergevq_platform.data.parquet.splits import same_split
from mergevq_platform.distributed.progress import readable_size

USAGE_VIEWS = 20_000  # of which the use of the vocabulary is said, the first of the split
CLASSES_SHOWN = 5


def describe_codes(path: str | Path, sheet: str | Path | None = None, *, verify: bool = False) -> str:
    """A code set as text of several lines.

    `sheet` names a PNG that gets the use of the vocabulary, a line for each kept count; `verify` compares every shard with its
    checksum. Raises `InputError` for a set that cannot be opened or does not match its checksums.
    """
    manifest = read_manifest(path)
    opened = {split: open_codes(path, split) for split in manifest.splits}
    shown = next((codes for split, codes in opened.items() if same_split(split, "train")), None)
    shown = shown or next(iter(opened.values()))
    lines = [str(path)]
    for split, codes in opened.items():
        size = readable_size(sum(shard.bytes for shard in codes.shards))
        lines.append(f"  {split:<9} {codes.rows:,} views in {len(codes.shards)} shards, {size}")
    tokenizer = manifest.tokenizer
    lines.append(
        f"  tokenizer {tokenizer.location}, weights {tokenizer.sha256[:12]}, {tokenizer.vocabulary:,} codes, {tokenizer.grid_tokens} cells"
    )
    if manifest.allocation is None:
        lines.append(f"  kept      {', '.join(map(str, manifest.keeps))} tokens, a count each row group")
    else:
        lines += _allocation_lines(manifest.allocation, manifest.classes)
    by_keep, views = _usage(shown)
    for keep, usage in by_keep.items():
        found = usage.compute()
        lines.append(
            f"  at {keep:<6} {found['code_usage']:.1f}% of the vocabulary used, {found['code_entropy_bits']:.2f} bits a code"
        )
    lines.append(f"  of        the first {views:,} views of '{shown.split}'")
    if manifest.skipped:
        lines.append(f"  left out  {len(manifest.skipped)} images that cannot be decoded")
    if verify:
        for codes in opened.values():
            codes.verify()
        lines.append("  checksums all shards match")
    if sheet is not None:
        counts = {keep: usage.checked() for keep, usage in by_keep.items()}
        figure = figures.code_usage_figure(
            {keep: found.numpy() for keep, found in counts.items() if found is not None}
        )
        figures.save_png(figure, Path(sheet))
        lines.append(f"  sheet     {sheet}")
    return "\n".join(lines)


def reached_lines(allocation: CodeAllocation) -> list[str]:
    """Of every split the wanted and the reached mean, and how many views keep how many tokens."""
    return [
        f"{split}: {found.mean:.2f} kept tokens on the mean, wanted {allocation.budget:g} ({allocation.allocator}); {_shares(found)}"
        for split, found in allocation.histograms.items()
    ]


def _allocation_lines(allocation: CodeAllocation, classes: Sequence[str]) -> list[str]:
    calibrated = allocation.calibration
    lines = [
        f"  kept      each image its own count, by {allocation.allocator} with constant {allocation.constant:.6g}",
        f"            calibrated on {calibrated['images']:,} images of '{calibrated['split']}', calibration "
        f"{allocation.calibration_sha256[:12]}",
        *(f"  {line}" for line in reached_lines(allocation)),
    ]
    found = next(iter(allocation.histograms.values()))
    means = sorted(
        (CountHistogram(found.counts, of_class, (), ()).mean, name)
        for name, of_class in zip(classes, found.of_class, strict=True)
        if sum(of_class)
    )
    if len(means) > 1:
        few = ", ".join(f"{name} {mean:.1f}" for mean, name in means[:CLASSES_SHOWN])
        many = ", ".join(f"{name} {mean:.1f}" for mean, name in means[::-1][:CLASSES_SHOWN])
        lines.append(f"  by class  fewest {few}; most {many}")
    return lines


def _shares(found: CountHistogram) -> str:
    total = max(1, sum(found.views))
    parts = zip(found.counts, found.views, strict=True)
    return ", ".join(f"{count}: {views / total:.0%}" for count, views in parts if views)


def _usage(codes: CodeSet) -> tuple[dict[int, CodeUsage], int]:
    """The use of the vocabulary at every kept count, of the first views of a split, and their number at the most."""
    usage: dict[int, CodeUsage] = {}
    seen: dict[int, int] = {}
    limit = USAGE_VIEWS if not codes.ragged else None
    total = 0
    for number in range(len(codes.places)):
        group = codes.group(number)
        if limit is None and total >= USAGE_VIEWS:
            break
        total += len(group.keep)
        for keep in sorted(set(group.keep.tolist())):
            if limit is not None and seen.get(keep, 0) >= limit:
                continue
            rows = group.keep == keep
            meter = usage.setdefault(keep, CodeUsage(codes.manifest.tokenizer.vocabulary))
            meter.update(torch.from_numpy(group.indices[rows]))
            seen[keep] = seen.get(keep, 0) + int(rows.sum())
    return dict(sorted(usage.items())), total if codes.ragged else max(seen.values(), default=0)
