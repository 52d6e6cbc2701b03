"""Code sets: what is stored is what the tokenizer says, whoever wrote it; the stream is a pure function of (seed, step)."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.keep import ListedKeepConfig, UniformKeepConfig
from mergevq_platform import cli
from mergevq_platform.codes import CodeSet, CodeStream, open_codes, tokenize
from mergevq_platform.codes.tokenize_worker import TokenizeWorker
from mergevq_platform.data import BatchPartition, EvalBatches, open_dataset, to_unit_range
from mergevq_platform.storage.tokenizer_ref import TokenizerRef, find_tokenizer

KEEPS = (4, 9, 16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer(tokenizer_directory: Path) -> TokenizerRef:
    return find_tokenizer(str(tokenizer_directory))


@pytest.fixture
def training(codes: Path) -> CodeSet:
    return open_codes(codes, "train")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def test_the_stored_codes_are_the_tokenizers_own(
    codes: Path, image_set: Path, tokenizer_directory: Path
) -> None:
    model = mergevq.load(tokenizer_directory)
    batch = to_unit_range(EvalBatches(open_dataset(image_set, "val"), 16, 32).batch(0), "cpu")
    stored = open_codes(codes, "val")
    for keep in KEEPS:
        group = stored.group(stored.groups_of(keep)[0])
        with torch.no_grad():
            encoded = model.encode(batch["image"], keep)
        assert np.array_equal(group.indices[:32], encoded.indices.numpy())
        assert np.array_equal(group.assignment[:32], encoded.source.assignment.numpy())
        assert np.array_equal(group.label[:32], batch["label"].numpy())


def test_every_view_is_stored_at_every_count_and_every_second_view_is_a_mirror_image(
    training: CodeSet, image_set: Path, tokenizer_directory: Path
) -> None:
    assert training.rows == 2 * 192
    for keep in KEEPS:
        groups = [training.group(number) for number in training.groups_of(keep)]
        views = {(int(s), int(c)) for group in groups for s, c in zip(group.sample, group.crop, strict=True)}
        assert views == {(sample, crop) for sample in range(192) for crop in (0, 1)}
    model = mergevq.load(tokenizer_directory)
    batch = to_unit_range(EvalBatches(open_dataset(image_set, "train"), 16, 32).batch(0), "cpu")
    mirrored = next(
        group
        for number in training.groups_of(9)
        if (group := training.group(number)).crop[0] == 1 and group.sample[0] == 0
    )
    with torch.no_grad():
        encoded = model.encode(batch["image"].flip(-1).contiguous(), 9)
    assert np.array_equal(mirrored.indices[:32], encoded.indices.numpy())


def test_an_interrupted_job_goes_on_and_gives_the_same_files(
    tokenizer: TokenizerRef, image_set: Path, codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    answer = TokenizeWorker.answer

    def failing(self: TokenizeWorker, job: object) -> object:
        if len(done) == 1:
            raise RuntimeError("the machine went away")
        done.append(job.file)  # type: ignore[attr-defined]
        return answer(self, job)  # type: ignore[arg-type]

    options = {"data": str(image_set), "keep": KEEPS, "crops": 2, "progress": False}
    monkeypatch.setattr(TokenizeWorker, "answer", failing)
    with pytest.raises(RuntimeError, match="went away"):
        tokenize(tokenizer, tmp_path / "set", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the same command goes on"):
        open_codes(tmp_path / "set", "train")
    done.clear()
    monkeypatch.setattr(
        TokenizeWorker, "answer", lambda self, job: (done.append(job.file), answer(self, job))[1]
    )
    tokenize(tokenizer, tmp_path / "set", **options)  # type: ignore[arg-type]
    assert len(done) == 2, "the shard that was whole is not made again"
    assert files(tmp_path / "set") == files(codes)
    done.clear()
    tokenize(tokenizer, tmp_path / "set", **options)  # type: ignore[arg-type]
    assert not done, "a finished set is left as it is"


@pytest.mark.ray
def test_two_workers_write_the_same_files(
    tokenizer: TokenizerRef, image_set: Path, codes: Path, tmp_path: Path, ray_home: Path
) -> None:
    made = tokenize(
        tokenizer, tmp_path / "set", data=str(image_set), keep=KEEPS, crops=2, workers=2, progress=False
    )
    assert made.tokenizer.sha256 == tokenizer.sha256
    assert files(tmp_path / "set") == files(codes)


def test_a_distribution_stores_each_block_at_one_count(
    tokenizer: TokenizerRef, image_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergevq_platform.codes.tokenizing.GROUP_ROWS", 16)
    keep = UniformKeepConfig(counts=(4, 9))
    tokenize(tokenizer, tmp_path / "set", data=str(image_set), keep=keep, crops=1, progress=False)
    drawn = open_codes(tmp_path / "set", "train")
    samples = [
        int(sample)
        for count in (4, 9)
        for number in drawn.groups_of(count)
        for sample in drawn.group(number).sample
    ]
    assert sorted(samples) == list(range(192))
    assert drawn.rows == 192


def test_one_kept_count_a_step_the_same_rows_for_any_number_of_workers(training: CodeSet) -> None:
    keep = ListedKeepConfig(counts=KEEPS)

    def counts(step: int) -> int:
        return mergevq.keep.draw(keep, 16, seed=3, step=step)  # type: ignore[attr-defined]

    def steps(rank: int, world: int, start: int, number: int) -> list[list[torch.Tensor]]:
        stream = CodeStream(
            training,
            counts,
            partition=BatchPartition(24, passes=3, workers=2),
            seed=3,
            rank=rank,
            world_size=world,
            start_step=start,
        )
        return [[batch["indices"] for batch in step] for step in islice(stream, number)]

    whole = steps(0, 1, 0, 9)
    for step, batches in enumerate(whole):
        assert {batch.shape for batch in batches} == {(8, counts(step))}
    shared = [
        [torch.cat(dealt) for dealt in zip(*ranks, strict=True)]
        for ranks in zip(steps(0, 2, 0, 9), steps(1, 2, 0, 9), strict=True)
    ]
    later = steps(0, 1, 5, 4)
    for one, other in ((whole, shared), (whole[5:], later)):
        assert all(
            torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
        )


def test_an_epoch_shows_every_view_once_whatever_was_drawn(training: CodeSet) -> None:
    stream = CodeStream(
        training, lambda step: KEEPS[step % 3], partition=BatchPartition(24, passes=1, workers=1), seed=0
    )
    groups, order = stream._order(4)
    rows = np.concatenate([stream._order(KEEPS[step % 3])[1].batch(0, step) for step in range(16)])
    assert sorted(rows) == list(range(384))
    codes = stream._rows(groups, order, rows[:50])
    plain = [training.group(number) for number in groups]
    samples = np.concatenate([group.sample for group in plain])
    assert np.array_equal(codes.sample, samples[rows[:50]])


def test_other_codes_in_the_same_directory_are_refused(
    tokenizer: TokenizerRef, image_set: Path, codes: Path
) -> None:
    with pytest.raises(InputError, match=r"already holds other codes.*another directory"):
        tokenize(tokenizer, codes, data=str(image_set), keep=(9,), progress=False)


def test_a_count_out_of_reach_names_those_within(
    tokenizer: TokenizerRef, image_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"cannot keep 3 of 16 tokens with 2 layers: the reachable counts are 4 to 16"
    ):
        tokenize(tokenizer, tmp_path / "set", data=str(image_set), keep=(3,), progress=False)
    assert not (tmp_path / "set").exists()


def test_a_damaged_shard_is_named(codes: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(codes, tmp_path / "set")
    (shard,) = (tmp_path / "set").glob("val-*.parquet")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=rf"{shard.name} does not match its checksum"):
        open_codes(tmp_path / "set", "val").verify()
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"{shard.name} is missing or has changed"):
        open_codes(tmp_path / "set", "val")


def test_other_weights_at_the_tokenizers_place_are_refused(tokenizer_directory: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tokenizer_directory, tmp_path / "tok")
    found = find_tokenizer(str(tmp_path / "tok"))
    torch.manual_seed(1)
    mergevq.save(mergevq.create("test_gr"), tmp_path / "tok")
    with pytest.raises(InputError, match="its codes mean something else"):
        found.load()


def test_the_manifest_names_the_tokenizer_and_the_images(
    codes: Path, image_set: Path, tokenizer: TokenizerRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = json.loads((codes / "manifest.json").read_text())
    monkeypatch.chdir(Path(tokenizer.location).parent)
    assert find_tokenizer(Path(tokenizer.location).name) == tokenizer, "places are absolute"
    assert Path(tree["tokenizer"]["location"]).is_absolute()
    assert tree["tokenizer"]["sha256"] == tokenizer.sha256
    assert tree["plan"]["data_fingerprints"]["train"] == open_dataset(image_set, "train").fingerprint
    assert tree["views"] == {"train": 384, "val": 64}


@pytest.mark.parametrize("name", ["training", "train"])
def test_the_training_split_gets_its_crops_by_any_of_its_names(
    name: str, tokenizer: TokenizerRef, image_set: Path, codes: Path, tmp_path: Path
) -> None:
    manifest = tokenize(
        tokenizer, tmp_path / "set", data=str(image_set), keep=(4,), splits=[name], progress=False
    )
    assert manifest.views == {name: 2 * 192}
    again = open_codes(codes, "train")
    for other in ("train", "training"):
        found = open_codes(tmp_path / "set", other)
        assert found.rows == again.rows
        assert np.array_equal(found.group(0).indices, again.group(again.groups_of(4)[0]).indices)
    assert open_codes(codes, "validation").rows == open_codes(codes, "val").rows
    with pytest.raises(InputError, match="has no split 'test'"):
        open_codes(codes, "test")


def test_the_split_that_the_recipe_trains_on_gets_the_crops(
    tokenizer: TokenizerRef, image_set: Path, tmp_path: Path
) -> None:
    manifest = tokenize(
        tokenizer, tmp_path / "set", data=str(image_set), keep=(4,), train_split="validation", progress=False
    )
    assert manifest.views == {"train": 192, "val": 2 * 64}


def test_a_test_split_without_labels_takes_no_classes_away(
    tokenizer: TokenizerRef, image_set: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for split, hidden in (("test", True), ("train", False)):
        (source,) = image_set.glob("val-*.parquet")
        table = pq.read_table(source)
        if hidden:
            table = table.set_column(1, "label", pa.array([-1] * len(table)))
        pq.write_table(table, tmp_path / "data" / f"{split}-00000.parquet")
    tokenize(tokenizer, tmp_path / "set", data=str(tmp_path / "data"), keep=(9,), crops=1, progress=False)
    train, test = (open_codes(tmp_path / "set", split) for split in ("train", "test"))
    assert train.num_classes == open_dataset(tmp_path / "data", "train").num_classes > 1
    assert set(test.group(0).label.tolist()) == {-1}


def test_the_column_of_classes_may_be_chosen_on_the_command_line(
    image_set: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(next(image_set.glob("val-*.parquet")))
    for name in ("fine", "coarse"):
        table = table.append_column(f"{name}_label", table["label"])
    (tmp_path / "bare").mkdir()
    pq.write_table(
        table.drop_columns(["label"]).replace_schema_metadata(None), tmp_path / "bare" / "train.parquet"
    )

    def classes(out: str, *options: str) -> tuple[str, ...]:
        words = ["tokenize", str(tokenizer_directory), str(tmp_path / out), "--data", str(tmp_path / "bare")]
        assert cli.run([*words, "--keep", "4", "--crops", "1", *options]) == 0, capsys.readouterr().err
        return open_codes(tmp_path / out, "train").manifest.classes

    assert classes("unsure") == ()
    assert len(classes("chosen", "--label-column", "fine_label")) == 12
