"""Code sets whose images keep different counts: each image's own codes, whoever wrote them, in an order by (seed, step)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mergevq
from mergevq.errors import InputError
from mergevq_platform import cli, loop
from mergevq_platform.codes import AllocatedCounts, CodeSet, CodeStream, open_codes, read_manifest, tokenize
from mergevq_platform.codes.tokenize_worker import TokenizeWorker
from mergevq_platform.data import BatchPartition, EvalBatches, SampleOrder, open_dataset, to_unit_range
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage.tokenizer_ref import TokenizerRef, find_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer(tokenizer_directory: Path) -> TokenizerRef:
    return find_tokenizer(str(tokenizer_directory))


@pytest.fixture
def training(ragged_codes: Path) -> CodeSet:
    return open_codes(ragged_codes, "train")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def test_every_image_is_stored_at_its_own_count_with_the_codes_that_it_has_alone(
    ragged_codes: Path, image_set: Path, tokenizer_directory: Path, allocated_counts: AllocatedCounts
) -> None:
    model = mergevq.load(tokenizer_directory)
    images = to_unit_range(EvalBatches(open_dataset(image_set, "val"), 16, 64).batch(0), "cpu")["image"]
    counts = allocated_counts.calibrated.counts(model, images, 10.0).tolist()
    assert len(set(counts)) == 3, "one count would prove nothing"
    group = open_codes(ragged_codes, "val").group(0)
    assert group.keep.tolist() == counts
    for row, keep in enumerate(counts):
        with torch.no_grad():
            encoded = model.encode(images[row : row + 1], keep)
        assert group.indices[row].tolist() == encoded.indices[0].tolist() + [-1] * (16 - keep)
        assert np.array_equal(group.assignment[row], encoded.source.assignment[0].numpy())


def test_the_manifest_says_histogram_budget_allocator_and_calibration(
    ragged_codes: Path, training: CodeSet, tokenizer: TokenizerRef, image_set: Path
) -> None:
    tree = json.loads((ragged_codes / "manifest.json").read_text())
    assert tree["format"] == "mergevq-codes/2"
    made = tree["allocation"]
    assert (made["allocator"], made["budget"]) == ("compressed_size", 10.0)
    assert made["calibration"]["tokenizer_sha256"] == tokenizer.sha256
    assert made["calibration"]["data_fingerprint"] == open_dataset(image_set, "train").fingerprint
    groups = [training.group(number) for number in range(len(training.places))]
    pairs = Counter(
        (label, keep)
        for group in groups
        for label, keep in zip(group.label.tolist(), group.keep.tolist(), strict=True)
    )
    found = training.histogram()
    for place, count in enumerate(found.counts):
        assert found.views[place] == sum(n for (_, keep), n in pairs.items() if keep == count)
        for label, of_class in enumerate(found.of_class):
            assert of_class[place] == pairs[label, count]
    keeps = np.concatenate([group.keep for group in groups])
    assert found.mean == pytest.approx(keeps.mean())
    assert abs(found.mean - 10) < 0.5
    assert training.manifest.keeps == (4, 9, 16)


def test_an_interrupted_job_goes_on_and_two_workers_write_the_same_files(
    tokenizer: TokenizerRef,
    image_set: Path,
    ragged_codes: Path,
    allocated_counts: AllocatedCounts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, done = TokenizeWorker.answer, []

    def failing(self: TokenizeWorker, job: object) -> object:
        if done:
            raise RuntimeError("the machine went away")
        done.append(job)
        return answer(self, job)  # type: ignore[arg-type]

    def again() -> None:
        tokenize(
            tokenizer, tmp_path / "set", data=str(image_set), keep=allocated_counts, crops=2, progress=False
        )

    monkeypatch.setattr(TokenizeWorker, "answer", failing)
    with pytest.raises(RuntimeError, match="went away"):
        again()
    monkeypatch.setattr(TokenizeWorker, "answer", answer)
    again()
    assert files(tmp_path / "set") == files(ragged_codes)
    assert read_manifest(tmp_path / "set").allocation == read_manifest(ragged_codes).allocation


@pytest.mark.ray
def test_two_workers_give_every_image_the_same_count(
    tokenizer: TokenizerRef,
    image_set: Path,
    ragged_codes: Path,
    allocated_counts: AllocatedCounts,
    tmp_path: Path,
    ray_home: Path,
) -> None:
    tokenize(
        tokenizer, tmp_path / "set", data=str(image_set), keep=allocated_counts, workers=2, progress=False
    )
    assert files(tmp_path / "set") == files(ragged_codes)


def test_a_step_holds_the_rows_of_its_order_for_any_number_of_workers_and_passes(training: CodeSet) -> None:
    def steps(rank: int, world: int, passes: int, start: int = 0) -> list[list[dict[str, torch.Tensor]]]:
        partition = BatchPartition(24, passes=passes, workers=2)
        stream = CodeStream(
            training, None, partition=partition, seed=3, rank=rank, world_size=world, start_step=start
        )
        return list(islice(stream, 5))

    def rows(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, tuple[int, ...]]]:
        found = []
        for batch in batches:
            assert batch["indices"].shape[1] == int(batch["count"].max()), "padded to its own longest"
            for codes, count in zip(batch["indices"].tolist(), batch["count"].tolist(), strict=True):
                assert set(codes[count:]) <= {-1}
                assert -1 not in codes[:count]
                found.append((count, tuple(codes[:count])))
        return sorted(found)

    whole = [rows(step) for step in steps(0, 1, 1)]
    assert any(len({count for count, _ in step}) > 1 for step in whole)
    shared = zip(steps(0, 2, 3), steps(1, 2, 3), strict=True)
    assert [rows([*one, *other]) for one, other in shared] == whole
    assert [rows(step) for step in steps(0, 1, 3, start=2)][:3] == whole[2:]
    order = SampleOrder([training.group_rows(n) for n in range(len(training.places))], 24, 3)
    keeps = np.concatenate([training.group(n).keep for n in range(len(training.places))])
    assert [count for count, _ in whole[0]] == sorted(keeps[order.batch(0, 0)].tolist())


def test_codes_at_one_count_are_not_asked_of_a_ragged_set(training: CodeSet) -> None:
    with pytest.raises(InputError, match=r"every image at its own kept count \(mean 10\), not at 9"):
        training.groups_of(9)


def test_an_allocator_that_is_not_calibrated_so_is_refused(
    tokenizer: TokenizerRef, image_set: Path, allocated_counts: AllocatedCounts, tmp_path: Path
) -> None:
    def refused(counts: AllocatedCounts, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            tokenize(tokenizer, tmp_path / "set", data=str(image_set), keep=counts, progress=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "set").exists()

    refused(replace(allocated_counts, budget=9.0), "not calibrated for a mean of 9 kept tokens, only for 10")
    calibrated = allocated_counts.calibrated
    other = replace(calibrated, calibration=replace(calibrated.calibration, tokenizer_sha256="0" * 64))
    refused(AllocatedCounts(other, 10.0), "calibrated with a tokenizer of weights 000000000000")


def test_counts_that_are_not_those_of_the_codes_are_damage(ragged_codes: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(ragged_codes, tmp_path / "set")
    shard = tmp_path / "set" / "val-crop0-00000.parquet"
    table = pq.read_table(shard)
    keeps = table["keep"].to_numpy().copy()
    keeps[3] = 9 if keeps[3] != 9 else 4
    import pyarrow as pa

    pq.write_table(table.set_column(5, "keep", pa.array(keeps, pa.int16())), shard, compression="zstd")
    tree = json.loads((tmp_path / "set" / "manifest.json").read_text())
    tree["splits"]["val"][0]["bytes"] = shard.stat().st_size
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="holds codes of other counts than it says: tokenize again"):
        open_codes(tmp_path / "set", "val").group(0)


def test_a_format_to_come_is_named(ragged_codes: Path, tmp_path: Path) -> None:
    text = (ragged_codes / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace("mergevq-codes/2", "mergevq-codes/9"))
    with pytest.raises(InputError, match="has format mergevq-codes/9, which this version does not know"):
        read_manifest(tmp_path)


def test_info_says_counts_allocator_and_use_of_the_vocabulary(
    ragged_codes: Path, codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "usage.png"
    assert cli.run(["data", "info", str(ragged_codes), "--verify", "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    for part in (
        "train     384 views in 2 shards",
        "each image its own count, by compressed_size with constant",
        "wanted 10 (compressed_size)",
        "by class  fewest",
        "% of the vocabulary used",
        "all shards match",
    ):
        assert part in said, said
    assert sheet.stat().st_size > 1000
    assert cli.run(["data", "info", str(codes)]) == 0
    assert "kept      4, 9, 16 tokens, a count each row group" in capsys.readouterr().out


def test_the_command_line_calibrates_writes_and_says_wanted_and_reached_mean(
    small_recipe: dict[str, Any],
    tokenizer_directory: Path,
    image_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    run = tmp_path / "home" / "ray" / "tokenizer"
    run.mkdir(parents=True)
    small_recipe["evaluation"] |= {"probe_images": 90}
    loop.train(resolve(small_recipe | {"steps": 1}), loop.Worker(), LocalHost(run))
    words = ["tokenize", str(run), str(tmp_path / "set"), "--crops", "1", "--budget", "8"]
    assert cli.run([*words, "--allocator", "similarity", "--keep", "16", "4", "9", "12"]) == 0
    said = capsys.readouterr().out
    manifest = read_manifest(tmp_path / "set")
    assert manifest.allocation is not None
    assert manifest.allocation.calibration["menu"] == [4, 9, 12, 16]
    for split, found in manifest.allocation.histograms.items():
        assert f"{split}: {found.mean:.2f} kept tokens on the mean, wanted 8 (similarity)" in said
    mistakes = {
        ("--allocator", "oracle"): "--allocator oracle goes with --budget",
        ("--budget", "9", "--allocator", "fixed"): "leave --budget out and give --keep 9",
        ("--budget", "9", "--keep", "{kind: uniform, counts: [4, 9]}"): "not of a distribution",
        ("--budget", "30"): "a mean of 30 kept tokens lies outside the menu",
    }
    for given, message in mistakes.items():
        assert cli.run(["tokenize", str(run), str(tmp_path / "other"), *given]) == 2
        assert message in capsys.readouterr().err
    alone = [str(tokenizer_directory), str(tmp_path / "other"), "--data", str(image_set), "--keep", "4", "9"]
    assert cli.run(["tokenize", *alone, "--budget", "6"]) == 2
    assert "a tokenizer without a recipe: give the run" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
