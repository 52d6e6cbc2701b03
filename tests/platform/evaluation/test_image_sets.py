"""Images against images: any folder as a person has it, the same numbers from every kind of source, and bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq.metrics import (
    FeatureStatistics,
    density_coverage,
    extractor,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from mergevq.metrics.features import RandomFeaturesConfig
from mergevq_platform import cli
from mergevq_platform.data import EvalBatches, open_dataset, open_images, to_unit_range
from mergevq_platform.evaluation import api


@pytest.fixture(scope="module")
def folder(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 64 images of the validation split as files, in a folder of each class."""
    root = tmp_path_factory.mktemp("files")
    batch = EvalBatches(open_dataset(image_set, "val"), 16, 64).batch(0)
    for index, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
        (root / f"class_{int(label):02d}").mkdir(exist_ok=True)
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array).save(root / f"class_{int(label):02d}" / f"{index:03d}.png")
    return root


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(arguments: list[str]) -> dict[str, Any]:
    assert cli.run(["evaluate", "--json", "scores.json", "--markdown", "scores.md", *arguments]) == 0
    return json.loads(Path("scores.json").read_text())


def test_files_and_their_packed_copy_are_the_same_set(folder: Path, image_set: Path, at_home: Path) -> None:
    scores = judged(["--images", str(folder), "--reference", str(image_set), "--split", "val"])
    values, protocol = scores["values"], scores["protocol"]
    assert values["gfd_random_v1"] == pytest.approx(0, abs=1e-6)
    assert (values["precision_random_v1"], values["recall_random_v1"]) == (1, 1)
    assert values["class_coverage"] == 100
    assert (protocol["images"], protocol["reference_images"], protocol["size"]) == (64, 64, 16)
    assert protocol["biased"], "64 images for 200 features"
    text = Path("scores.md").read_text()
    assert "strongly biased" in text
    assert "gfd_random_v1" in text
    assert not any("fid" in key for key in values), "no Inception measured this"


def test_the_numbers_are_those_of_the_library(folder: Path, image_set: Path, at_home: Path) -> None:
    scores = judged(
        [
            *("--images", str(folder), "--reference", str(image_set), "--split", "train", "--no-cache"),
            *("--suite", "generation", "--suite", "distribution"),
        ]
    )
    network = extractor(RandomFeaturesConfig())
    found = []
    for split in ("val", "train"):
        batches = EvalBatches(open_dataset(image_set, split), 16, 192)
        found.append(network(to_unit_range(batches.batch(0), torch.device("cpu"))["image"]))
    statistics = [FeatureStatistics() for _ in found]
    for one, features in zip(statistics, found, strict=True):
        one.update(features)
    values = scores["values"]
    assert values["kid_random_v1"] == pytest.approx(kernel_distance(*found).mean, rel=1e-6)
    held = density_coverage(*found)
    assert (values["density_random_v1"], values["coverage_random_v1"]) == (held.density, held.coverage)
    assert "100 subsets of 64 images" in scores["protocol"]["distribution"]["kid"]
    assert values["gfd_random_v1"] == pytest.approx(frechet_distance(*statistics), rel=1e-5)
    manifold = precision_recall(found[0], found[1])
    assert values["precision_random_v1"] == pytest.approx(manifold.precision, abs=0.02)
    assert values["recall_random_v1"] == pytest.approx(manifold.recall, abs=0.01)


def test_statistics_stand_in_for_the_images_and_know_their_extractor(
    folder: Path, image_set: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(["--images", str(image_set), "--split", "train", "--save-statistics", "train.npz"])
    direct = judged(["--images", str(folder), "--reference", str(image_set), "--split", "train"])["values"]
    stored = judged(["--images", str(folder), "--reference", "train.npz"])
    assert stored["values"]["gfd_random_v1"] == pytest.approx(direct["gfd_random_v1"], rel=1e-9)
    assert "recall_random_v1" not in stored["values"], "moments have no neighbours"
    assert stored["protocol"]["reference_images"] == 192
    with np.load("train.npz") as arrays:
        kept = dict(arrays)
    kept["mergevq_extractor"] = np.array(json.dumps({"name": "another"}))
    np.savez("other.npz", **kept)
    assert cli.run(["evaluate", "--images", str(folder), "--reference", "other.npz"]) == 2
    assert "use one extractor for both" in capsys.readouterr().err


def test_an_npz_of_samples_is_read_as_the_adm_suite_writes_it(folder: Path, at_home: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    np.savez("samples.npz", np.stack([np.asarray(Image.open(file)) for file in files]))
    values = judged(["--images", "samples.npz", "--reference", str(folder)])["values"]
    assert values["gfd_random_v1"] == pytest.approx(0, abs=1e-6)
    assert "class_coverage" not in values


@pytest.mark.slow
@pytest.mark.ray
def test_one_two_and_five_workers_agree(folder: Path, image_set: Path, ray_home: Path) -> None:
    found = [
        api.evaluate_images(
            str(folder), str(image_set), home=ray_home, split="train", workers=workers, cache=False
        ).values
        for workers in (1, 2, 5)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6, abs=1e-9)


def test_what_cannot_be_judged_is_said_in_one_line(
    folder: Path, image_set: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home / "empty").mkdir()
    (at_home / "mixed").mkdir()
    (at_home / "broken").mkdir()
    Image.new("RGB", (16, 16)).save("mixed/a.png")
    Image.new("RGB", (20, 16)).save("mixed/b.png")
    (at_home / "broken" / "a.png").write_bytes(b"no image")
    np.savez("wrong.npz", a=np.zeros(3))
    for arguments, message in (
        (["--images", "empty"], "empty holds no images"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "mixed"], "b.png has 20 x 16 pixels, a.png 16 x 16.*--size"),
        (["--images", "broken"], "a.png cannot be read"),
        (["--images", "wrong.npz"], "arr_0"),
        (["--images", str(image_set)], "splits train, val.*--split"),
        (["--images", str(folder), "--reference", "wrong.npz"], "arr_0"),
        (["--images", str(folder), "--inception", "nowhere.pth"], "no file 'nowhere.pth'.*MERGEVQ_WEIGHTS"),
        (["--images", str(folder), "--extractor", "{kind: timm}"], "missing key"),
        (["--images", str(folder), "a_run"], "give a run .*or --images"),
        (["a_run", "--size", "8"], "go with --images"),
    ):
        assert cli.run(["evaluate", *arguments]) == 2, arguments

        assert re.search(message, capsys.readouterr().err), arguments
    sized = ["--images", "mixed", "--size", "16", "--save-statistics", "two.npz"]
    assert judged(sized)["protocol"]["images"] == 2
    scores = judged(["--images", "mixed", "--reference", "mixed", "--size", "16"])
    assert scores["protocol"]["images"] == 2
    assert scores["values"]["gfd_random_v1"] == pytest.approx(0, abs=1e-6)
    assert not any("recall" in key for key in scores["values"])
    assert "No precision and recall: 2 images do not have 3 neighbours" in Path("scores.md").read_text()
    assert cli.run(["evaluate", "--images", "mixed", "--size", "16"]) == 2
    assert "nothing can be said of 2 images of mixed without a reference" in capsys.readouterr().err


def test_no_option_is_taken_that_changes_nothing(
    folder: Path, image_set: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(folder.rglob("*.png"))[:8]
    np.savez("samples.npz", np.stack([np.asarray(Image.open(file)) for file in files]))
    for arguments, message in (
        (
            ["--images", "samples.npz", "--size", "8"],
            "the samples of samples.npz are taken as they are, 16 px",
        ),
        (["--images", "samples.npz", "--split", "val"], "--split val: samples.npz is no packed set"),
        (["--images", str(folder), "--split", "val"], f"--split val: {folder} is no packed set"),
    ):
        assert cli.run(["evaluate", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err
    for arguments in (
        ["--size", "0"],
        ["--size", "-8"],
        ["--seeds", "0"],
        ["--workers", "0"],
        ["--keep", "0"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.run(["evaluate", "--images", str(folder), *arguments])
        assert ended.value.code == 2
        assert "give a whole number of at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.run(["evaluate", "--images", ""])  # would be this directory
    assert judged(["--images", "samples.npz", "--reference", str(image_set), "--split", "train"])["values"]


def test_the_size_of_an_npz_is_what_others_are_brought_to(
    folder: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home / "large").mkdir()
    for index in range(6):
        Image.new("RGB", (24, 24), (index, 0, 0)).save(f"large/{index}.png")
    np.savez("samples.npz", np.zeros((6, 16, 16, 3), np.uint8))
    assert cli.run(["evaluate", "--images", "large", "--reference", "samples.npz"]) == 2
    assert "--size 16 brings both to one size" in capsys.readouterr().err
    assert judged(["--images", "large", "--reference", "samples.npz", "--size", "16"])["values"]


def test_statistics_are_known_by_what_they_hold_and_named_where_they_do_not_fit(
    folder: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("ref.NPZ").open("wb") as stream:
        np.savez(stream, mu=np.zeros(7), sigma=np.eye(7))
    assert cli.run(["evaluate", "--images", str(folder), "--reference", "ref.NPZ"]) == 2
    assert (
        "--reference: ref.NPZ holds statistics of 7 numbers, random_v1 gives 200" in capsys.readouterr().err
    )


def test_the_home_is_meant_by_its_sign_and_a_folder_is_no_file(
    folder: Path, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    scores = judged([f"--images=~/{folder.name}", f"--reference=~/{folder.name}"])
    assert scores["protocol"]["reference"] == str(folder)
    assert (
        cli.run(["evaluate", "--images", str(folder), "--reference", str(folder), "--json", str(at_home)])
        == 2
    )
    assert f"is a directory ({at_home})" in capsys.readouterr().err


def test_classes_of_a_set_without_all_labels_are_those_of_the_labelled(
    image_set: Path, at_home: Path
) -> None:
    (source,) = image_set.glob("val-*.parquet")
    table = pq.read_table(source).replace_schema_metadata(None)
    labels = pa.array(np.where(np.arange(len(table)) < 10, -1, table["label"].to_numpy()))
    Path("some").mkdir()
    pq.write_table(
        table.set_column(table.schema.get_field_index("label"), "label", labels), "some/val-00000.parquet"
    )
    scores = judged(["--images", "some", "--split", "val", "--size", "16"])
    assert 0 < scores["values"]["class_coverage"] <= 100
    assert "10 of 64 images" in scores["protocol"]["lacking"]["class"]


def test_a_image_that_breaks_after_its_header_is_named(at_home: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save("whole.png")
    (at_home / "cut").mkdir()
    data = Path("whole.png").read_bytes()
    Path("cut/a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.png .*a metric needs every image"):
        open_images("cut", 8).batch(0)


def test_weight_files_named_without_a_folder_are_looked_for_in_one(tmp_path: Path) -> None:
    from mergevq.metrics import InceptionFeaturesConfig
    from mergevq.metrics.lpips import LpipsFilesConfig
    from mergevq_platform.evaluation.extractor_choice import with_files
    from mergevq_platform.recipe import EvaluationConfig

    settings = EvaluationConfig(
        extractor=InceptionFeaturesConfig(weights="inception.pth"),
        lpips=LpipsFilesConfig(backbone="vgg.pth", heads="heads.pth"),
    )
    for name in ("inception.pth", "vgg.pth"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        InputError, match=r"evaluation\.lpips\.heads: no file 'heads\.pth' here nor in MERGEVQ_WEIGHTS"
    ):
        with_files(settings, tmp_path)
    (tmp_path / "heads.pth").write_text("")
    found: Any = with_files(settings, tmp_path)
    assert found.extractor.weights == str(tmp_path / "inception.pth")
    assert found.lpips.heads == str(tmp_path / "heads.pth")
    assert with_files(EvaluationConfig(), None) == EvaluationConfig()
