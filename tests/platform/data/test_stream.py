"""The training stream and the evaluation batches, on real shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mergevq.errors import InputError
from mergevq_platform.data import (
    BatchPartition,
    EvalBatches,
    TrainStream,
    ViewsConfig,
    decode,
    open_dataset,
    to_unit_range,
)
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.parquet.shards import ImageRecord, write_set
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import render

VIEWS = ViewsConfig(image_size=12, student_size=8, teacher_size=10)
STEPS = 12  # of an epoch: 101 rows, global batch 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(tmp_path_factory.mktemp("stream") / "set", bad=())


def make(directory: Path, *, bad: tuple[int, ...], rows: int = 101) -> Dataset:
    """101 images of 14 px in row groups of 8 and shards of 40; the `bad` rows hold half of a PNG."""
    images, labels = render(np.arange(rows), "train", 14)
    records = [
        ImageRecord(encode_png(image), f"{row}.png", int(label))
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    records = [
        record._replace(data=record.data[:150]) if row in bad else record
        for row, record in enumerate(records)
    ]
    write_set(
        directory,
        {"train": records},
        CLASSES,
        size=14,
        source={"bad": list(bad)},
        shard_rows=40,
        row_group_rows=8,
    )
    return open_dataset(directory, "train")


def steps(dataset: Dataset, count: int, *, passes: int = 2, **options: object) -> list[list[Batch]]:
    settings = {"partition": BatchPartition(8, passes, workers=4), "seed": 1, "bad_image_limit": 0} | options
    with TrainStream(dataset, VIEWS, **settings) as stream:  # type: ignore[arg-type]
        return list(islice(stream, count))


def assert_same(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


def joined(micro_batches: list[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in micro_batches]) for name in micro_batches[0]}


def test_a_step_is_a_list_of_micro_batches_with_all_views(dataset: Dataset) -> None:
    (step,) = steps(dataset, 1, passes=4)
    assert len(step) == 4
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in step[0].items()} == {
        "image": ((2, 3, 12, 12), torch.uint8),
        "student": ((2, 3, 8, 8), torch.uint8),
        "teacher": ((2, 3, 10, 10), torch.uint8),
        "label": ((2,), torch.int64),
        "sample": ((2,), torch.int64),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [1, 7, STEPS, STEPS + 5])
def test_a_stream_that_starts_late_yields_what_the_undisturbed_one_yields(
    dataset: Dataset, start: int, world_size: int
) -> None:
    for rank in range(world_size):
        whole = steps(dataset, start + 4, rank=rank, world_size=world_size)
        assert_same(steps(dataset, 4, rank=rank, world_size=world_size, start_step=start), whole[start:])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_pass_of_the_ranks_together_is_the_pass_of_one_rank(dataset: Dataset, world_size: int) -> None:
    alone = steps(dataset, STEPS + 2)
    ranks = [steps(dataset, STEPS + 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        together = [joined([rank[step][number] for rank in ranks]) for number in range(2)]
        assert_same([together], [whole])


def test_passes_cut_the_batch_and_change_nothing_else(dataset: Dataset) -> None:
    def by_sample(step: list[Batch]) -> dict[int, bytes]:
        batch = joined(step)
        return {int(s): batch["image"][row].numpy().tobytes() for row, s in enumerate(batch["sample"])}

    coarse, fine = steps(dataset, 5, passes=1), steps(dataset, 5, passes=2)
    for one, other in zip(coarse, fine, strict=True):
        assert len(by_sample(one)) == 8
        assert by_sample(one) == by_sample(other)


def test_loader_processes_yield_what_the_thread_yields(dataset: Dataset) -> None:
    options = {"rank": 1, "world_size": 3, "start_step": 3}
    assert_same(
        steps(dataset, STEPS + 2, workers=2, **options),  # type: ignore[arg-type]
        steps(dataset, STEPS + 2, **options),  # type: ignore[arg-type]
    )


def test_every_sample_comes_once_an_epoch_with_its_own_image_and_label(dataset: Dataset) -> None:
    epoch = [joined(step) for step in steps(dataset, STEPS)]
    samples = torch.cat([batch["sample"] for batch in epoch]).tolist()
    assert len(samples) == len(set(samples)) == 96
    images, labels = render(np.arange(101), "train", 14)
    assert torch.cat([batch["label"] for batch in epoch]).tolist() == labels[samples].tolist()
    sample, image = samples[5], epoch[0]["image"][5].float()
    # 14 px shrunk to 12 without a crop: the mean colours stay.
    assert image.mean((1, 2)).numpy() == pytest.approx(images[sample].reshape(-1, 3).mean(0), abs=2)


def test_augmentation_changes_from_epoch_to_epoch(dataset: Dataset) -> None:
    two = [joined(step) for step in steps(dataset, 2 * STEPS)]

    def by_sample(batches: list[Batch]) -> dict[int, bytes]:
        return {
            int(sample): batch["student"][row].numpy().tobytes()
            for batch in batches
            for row, sample in enumerate(batch["sample"])
        }

    first, second = by_sample(two[:STEPS]), by_sample(two[STEPS:])
    shared = first.keys() & second.keys()
    assert len(shared) > 80
    assert sum(first[sample] != second[sample] for sample in shared) > 0.95 * len(shared)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_row_groups_are_read_as_often_as_computed_and_not_more(dataset: Dataset, world_size: int) -> None:
    reads, order = 0, None
    for rank in range(world_size):
        stream = TrainStream(
            dataset,
            VIEWS,
            partition=BatchPartition(8, 1, world_size),
            seed=1,
            rank=rank,
            world_size=world_size,
        )
        order = stream.order
        list(islice(iter(stream._plan), order.steps_per_epoch))
        reads += stream._plan.reads
    assert order is not None
    assert order.lanes > 1
    assert reads <= order.read_amplification(world_size) * len(dataset.row_group_sizes)
    assert reads <= 1.6 * max(1, world_size / order.lanes) * len(dataset.row_group_sizes)


def test_bad_images_are_replaced_by_neighbours_counted_once_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make(tmp_path / "set", bad=(9, 10, 50))
    with (
        caplog.at_level(logging.WARNING),
        TrainStream(dataset, VIEWS, partition=BatchPartition(8, 2, 2), seed=1, bad_image_limit=3) as stream,
    ):
        counts, samples = [], []
        for step in islice(stream, 3 * STEPS):
            counts.append(stream.bad_images)
            samples.append(joined(step)["sample"].tolist())
    assert counts[0] <= counts[-1] == 3
    assert counts == sorted(counts)
    assert not {9, 10, 50} & {sample for step in samples for sample in step}
    assert any(step.count(11) == 2 or 11 in step for step in samples)
    messages = " ".join(record.getMessage() for record in caplog.records)
    for place in ("train-00000.parquet row 9", "train-00000.parquet row 10", "train-00001.parquet row 10"):
        assert place in messages
    assert len(caplog.records) == 3
    # Replacement depends on nothing but the row: other ranks and a resumed run do the same.
    ranks = [steps(dataset, STEPS, rank=rank, world_size=2, bad_image_limit=3) for rank in (0, 1)]
    both = [
        sorted(a + b)
        for a, b in zip(*([joined(s)["sample"].tolist() for s in rank] for rank in ranks), strict=True)
    ]
    assert both == [sorted(step) for step in samples[:STEPS]]


def test_one_bad_image_above_the_limit_is_an_error_with_its_place(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", bad=(9, 50))
    with pytest.raises(
        InputError,
        match=r"2 bad images, more than data.bad_image_limit 1.*row \d+ of .*set cannot be decoded",
    ):
        steps(dataset, 2 * STEPS, bad_image_limit=1)


def test_a_row_group_without_any_usable_image_is_an_error(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", bad=tuple(range(16, 24)))
    with pytest.raises(InputError, match="whole row group hold no usable image"):
        steps(dataset, 2 * STEPS, bad_image_limit=100)


def test_a_damaged_shard_is_an_error_that_names_it_also_from_a_loader_process(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", bad=())
    shard = tmp_path / "set" / "train-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    shard.write_bytes(content)
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"train-00001.parquet.*(cannot be read|hold no usable)"):
            steps(dataset, STEPS, workers=workers, bad_image_limit=200)


def test_images_above_the_pixel_limit_are_bad_images(dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"has 14 x 14 pixels, more than the limit of 100"):
        steps(dataset, 1, max_pixels=100, bad_image_limit=0)


def test_closing_early_ends_the_thread(dataset: Dataset) -> None:
    stream = TrainStream(dataset, VIEWS, partition=BatchPartition(8, 1, 1), seed=0)
    iterator: Iterator[list[Batch]] = iter(stream)
    next(iterator)
    thread = stream._thread
    assert thread is not None
    assert thread.is_alive()
    stream.close()
    assert not thread.is_alive()


def test_the_unit_range_is_minus_one_to_one_and_contiguous(dataset: Dataset) -> None:
    (step,) = steps(dataset, 1)
    batch = to_unit_range(step[0], "cpu")
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous()
    assert torch.equal(batch["image"], step[0]["image"].float() / 127.5 - 1)
    assert torch.equal(batch["label"], step[0]["label"])
    ends = to_unit_range({"image": torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)}, "cpu")[
        "image"
    ]
    assert ends.flatten().tolist() == [-1, 1]


def test_evaluation_batches_are_the_same_samples_whoever_takes_them(dataset: Dataset) -> None:
    batches = EvalBatches(dataset, 12, 16)
    assert (batches.num_batches, batches.images) == (7, 101)
    for index in (0, 3, 6):
        assert batches.batch(index)["sample"].tolist() == list(range(16 * index, min(16 * index + 16, 101)))
    for world_size in (1, 2, 3, 10):
        taken = [index for rank in range(world_size) for index in batches.shard(rank, world_size)]
        assert sorted(taken) == list(range(7))
    images, labels = render(np.arange(101), "train", 14)
    last = batches.batch(6)
    assert last["image"].shape == (5, 3, 12, 12)
    assert last["label"].tolist() == labels[96:].tolist()
    again = EvalBatches(dataset, 14, 16).batch(6)["image"].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(again, images[96:])


def test_an_evaluation_may_take_the_first_images_only(dataset: Dataset) -> None:
    batches = EvalBatches(dataset, 12, 16, limit=20)
    assert (batches.images, batches.num_batches) == (20, 2)
    assert batches.batch(1)["sample"].tolist() == [16, 17, 18, 19]
    with pytest.raises(IndexError):
        batches.batch(2)


def test_evaluation_does_not_leave_out_bad_images_silently(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", bad=(41,), rows=60)
    batches = EvalBatches(dataset, 12, 16)
    batches.batch(1)
    with pytest.raises(
        InputError, match=r"train-00001.parquet row 1 cannot be decoded.*evaluation needs every image"
    ):
        batches.batch(2)


def test_the_stored_images_decode(dataset: Dataset) -> None:
    assert {decode(row.data).size for row in dataset.read(range(101))} == {(14, 14)}
