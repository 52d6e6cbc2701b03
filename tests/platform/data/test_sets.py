"""Opening image sets: ours, and bare Hugging Face Parquet; what is said when they are not in order."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mergevq.errors import InputError
from mergevq_platform.data import describe, open_dataset
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.parquet.directory import split_names
from mergevq_platform.data.parquet.shards import ImageRecord, write_set, write_shard
from mergevq_platform.distributed.sharded_map import RECORDS

PICTURE = encode_png(np.zeros((4, 4, 3), dtype=np.uint8))


def records(count: int, classes: int = 3) -> list[ImageRecord]:
    colours = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [
        ImageRecord(encode_png(colour), f"{row}.png", row % classes) for row, colour in enumerate(colours)
    ]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    splits = {"train": records(25), "val": records(7)}
    write_set(tmp_path / "set", splits, ("a", "b", "c"), size=4, source={}, shard_rows=10, row_group_rows=4)
    return tmp_path / "set"


def hub_file(
    path: Path, rows: int, *, label: Any = "class", names: tuple[str, ...] = (), **write: Any
) -> None:
    """A file as Hugging Face writes it."""
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": PICTURE, "path": f"{row}.png"} for row in range(rows)])
    }
    if label is not None:
        columns["label"] = pa.array(
            [row % 3 if label == "class" else label for row in range(rows)], pa.int64()
        )
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4, **write)


def test_rows_are_numbered_over_shards_and_read_back_as_written(ours: Path) -> None:
    dataset = open_dataset(ours, "train")
    assert (dataset.rows, dataset.num_classes, dataset.classes, dataset.labelled) == (
        25,
        3,
        ("a", "b", "c"),
        True,
    )
    assert dataset.row_group_sizes.tolist() == [4, 4, 2, 4, 4, 2, 4, 1]
    wanted = [24, 0, 9, 10, 3]
    rows = dataset.read(wanted)
    expected = records(25)
    assert [(row.data, row.label, row.sample) for row in rows] == [
        (expected[i].data, expected[i].label, i) for i in wanted
    ]
    assert dataset.place(24) == "train-00002.parquet row 4"
    with pytest.raises(IndexError):
        dataset.read([25])


def test_a_dataset_travels_to_other_processes(ours: Path) -> None:
    dataset = open_dataset(ours, "val")
    dataset.read([0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read([6]) == dataset.read([6])


def test_the_fingerprint_follows_the_images_and_not_the_place(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "copy")
    assert open_dataset(tmp_path / "copy", "train").fingerprint == open_dataset(ours, "train").fingerprint
    write_set(tmp_path / "other", {"train": records(26)}, ("a", "b", "c"), size=4, source={})
    assert open_dataset(tmp_path / "other", "train").fingerprint != open_dataset(ours, "train").fingerprint


def test_shards_carry_hugging_faces_features(ours: Path) -> None:
    schema = pq.read_schema(ours / "train-00000.parquet")
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    # Without its manifest the set reads the same.
    before = open_dataset(ours, "train")
    (ours / "manifest.json").unlink()
    after = open_dataset(ours, "train")
    assert (after.rows, after.classes, after.read([12])) == (before.rows, before.classes, before.read([12]))


def test_imagenet_as_the_hub_lays_it_out_is_read_where_it_is(tmp_path: Path) -> None:
    for part in range(2):
        hub_file(
            tmp_path / f"data/train-0000{part}-of-00002.parquet", 6, names=("tench", "goldfish", "shark")
        )
    hub_file(tmp_path / "data/validation-00000-of-00001.parquet", 5, names=("tench", "goldfish", "shark"))
    hub_file(tmp_path / "data/test-00000-of-00001.parquet", 4, label=-1, names=("tench", "goldfish", "shark"))
    train = open_dataset(tmp_path, "train")
    assert (train.rows, train.classes) == (12, ("tench", "goldfish", "shark"))
    assert train.row_group_sizes.tolist() == [4, 2, 4, 2]
    for name in ("val", "validation"):
        assert open_dataset(tmp_path, name).rows == 5
    test = open_dataset(tmp_path, "test")
    assert (test.labelled, test.num_classes, test.read([1])[0].label) == (False, 0, -1)
    assert train.fingerprint != open_dataset(tmp_path, "val").fingerprint
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    assert open_dataset(tmp_path, "train").fingerprint != train.fingerprint


@pytest.mark.parametrize(
    "file",
    [
        "train.parquet",
        "default/train/0000.parquet",
        "default/partial-train/0000.parquet",
        "data/train-00000-of-00001-abc.parquet",
    ],
)
def test_splits_are_found_by_file_or_folder_name(tmp_path: Path, file: str) -> None:
    hub_file(tmp_path / file, 4)
    assert split_names(tmp_path) == ["train"]
    assert open_dataset(tmp_path, "train").rows == 4


def test_files_without_labels_or_class_names_or_statistics_work(tmp_path: Path) -> None:
    hub_file(tmp_path / "none/train.parquet", 5, label=None)
    none = open_dataset(tmp_path / "none", "train")
    assert (none.labelled, none.num_classes, none.read([4])[0].label) == (False, 0, -1)
    hub_file(tmp_path / "numbers/train.parquet", 5, write_statistics=False)
    numbers = open_dataset(tmp_path / "numbers", "train")
    assert (numbers.classes, numbers.read([4])[0].label) == (("0", "1", "2"), 1)
    pq.write_table(pa.table({"img": pa.array([PICTURE]), "y": [1]}), tmp_path / "train.parquet")
    shutil.rmtree(tmp_path / "none")
    shutil.rmtree(tmp_path / "numbers")
    assert open_dataset(tmp_path, "train").read([0])[0].data == PICTURE


def expect(message: str, path: Path | str, split: str = "train") -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_dataset(path, split).read([0])
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named_with_the_fix(ours: Path, tmp_path: Path) -> None:
    expect("no data at .*nowhere: make it with `mergevq data shapes DIR`", tmp_path / "nowhere")
    expect("has no split 'test', only train, val", ours, "test")
    expect("is a file: name the directory", ours / "train-00000.parquet")
    (tmp_path / "empty").mkdir()
    expect("holds no Parquet files: pack images", tmp_path / "empty")
    expect("cannot be opened", "ftp3://somewhere/else")
    (tmp_path / "begun" / RECORDS).mkdir(parents=True)
    expect("a pack that has not ended: run the same", tmp_path / "begun")


def test_shards_that_do_not_match_the_manifest_are_named(ours: Path) -> None:
    shard = ours / "train-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    expect(rf"train-00001.parquet has {len(content) - 10} bytes, manifest.json says {len(content)}", ours)
    shard.unlink()
    expect("train-00001.parquet is missing, though manifest.json lists it", ours)
    assert open_dataset(ours, "val").rows == 7


def test_a_damaged_manifest_is_named(ours: Path) -> None:
    manifest = json.loads((ours / "manifest.json").read_text())
    (ours / "manifest.json").write_text("{")
    expect("manifest.json is damaged", ours)
    (ours / "manifest.json").write_text(json.dumps(manifest | {"format": "mergevq-shards/99"}))
    expect("is of format 'mergevq-shards/99'", ours)
    del manifest["splits"]["train"]["shards"][0]["rows"]
    (ours / "manifest.json").write_text(json.dumps(manifest))
    expect("manifest.json is damaged", ours)


def test_empty_and_broken_bare_files_are_named(tmp_path: Path) -> None:
    hub_file(tmp_path / "train-0.parquet", 4)
    (tmp_path / "train-1.parquet").write_bytes(b"")
    expect("train-1.parquet is empty", tmp_path)
    (tmp_path / "train-1.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:-100])
    expect("train-1.parquet is not a whole Parquet file", tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-1.parquet")
    expect("needs one column 'image'.*its columns: text", tmp_path)
    hub_file(tmp_path / "train-1.parquet", 4, label=None)
    expect("has other columns than train-0.parquet", tmp_path)
    hub_file(tmp_path / "train-1.parquet", 4, names=("a", "b", "c"))
    hub_file(tmp_path / "train-0.parquet", 4, names=("a", "b"))
    expect("label 2, but its metadata names 2 classes", tmp_path)


def test_verification_finds_a_changed_byte(ours: Path) -> None:
    assert "all shards match" in describe(ours, verify=True)
    shard = ours / "val-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"val-00000.parquet does not match its checksum"):
        describe(ours, verify=True)


def test_a_shard_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def disk_full() -> Iterator[ImageRecord]:
        yield from records(9)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, "train-00000.parquet", disk_full(), (), row_group_rows=4)
    assert list(tmp_path.iterdir()) == []
    assert write_shard(tmp_path, "train-00000.parquet", [], ()) is None
    assert list(tmp_path.iterdir()) == []


def test_writing_among_other_files_is_refused(tmp_path: Path) -> None:
    hub_file(tmp_path / "mine.parquet", 2)
    with pytest.raises(InputError, match="already holds Parquet files without a manifest"):
        write_set(tmp_path, {"train": records(2)}, (), size=4, source={})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: name a directory"):
        write_set(tmp_path / "file", {"train": records(2)}, (), size=4, source={})


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], str]]:
    """Copies a directory to a store of this machine, and gives its address there."""
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"

    def upload(directory: Path, name: str) -> str:
        store, root = pyarrow.fs.FileSystem.from_uri(f"s3://bucket/{name}?{options}")
        store.create_dir("bucket")
        if directory.exists():
            pyarrow.fs.copy_files(str(directory), root, destination_filesystem=store)
        return f"s3://bucket/{name}?{options}"

    yield upload
    server.stop()


def test_a_set_on_an_s3_compatible_store_is_read_in_place(
    ours: Path, object_store: Callable[[Path, str], str]
) -> None:
    dataset = open_dataset(object_store(ours, "set"), "train")
    here = open_dataset(ours, "train")
    assert dataset.fingerprint == here.fingerprint
    assert dataset.read([3, 24]) == here.read([3, 24])
    assert pickle.loads(pickle.dumps(dataset)).read([13]) == here.read([13])
    expect("no data at s3://bucket/none", object_store(ours / "nowhere", "none"))


def test_what_was_fetched_from_a_store_is_not_kept(
    tmp_path: Path, object_store: Callable[[Path, str], str]
) -> None:
    (tmp_path / "set").mkdir()
    for number in range(6):
        table = pa.table({"image": pa.array([bytes(1 << 20), bytes(1 << 20)])})
        pq.write_table(
            table, tmp_path / f"set/train-{number}.parquet", use_dictionary=False, compression="none"
        )
    dataset = open_dataset(object_store(tmp_path / "set", "large"), "train")
    before = pa.total_allocated_bytes()
    for group in range(6):
        assert len(dataset.row_group(group).images) == 2
    assert pa.total_allocated_bytes() - before < 3 << 20  # one file's row group, not six files'
    dataset.slice_bytes, dataset.recent_bytes = 1 << 20, 1
    assert [len(row.data or b"") for row in dataset.read(range(12))] == [1 << 20] * 12
