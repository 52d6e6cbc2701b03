"""The curve: the same for any number of workers, honest names, files that a person can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq.config import merged, to_tree
from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.evaluation import api, probing, reconstruction, tokenizer_worker
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.spec import EvaluationSpec, keeps_to_measure
from mergevq_platform.evaluation.tokenizer import CAVEATS
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import JOURNAL_NAME, read_metrics
from mergevq_platform.tracking.store import Store
from trained_runs import trained_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 96}  # 64 images: the last batch is partial
    return resolve(small_recipe | {"steps": 2, "checkpoint_every": 2})


@pytest.fixture
def run(recipe: Recipe, home: Path) -> Run:
    """A run in the store, trained without Ray; made once."""
    return trained_run("evaluated", home, lambda: recipe)


def curve_of(run: Run, recipe: Recipe, workers: int = 0) -> list[dict[str, float]]:
    evaluator = task_of(recipe).evaluator(
        recipe,
        run.newest_checkpoint(),
        EvaluationOptions(device="cpu", step=2, workers=workers, keeps=(4, 9, 16)),
    )
    return evaluator.report("x").rows


@pytest.mark.ray
def test_one_two_and_five_workers_agree(run: Run, recipe: Recipe, ray_home: Path) -> None:
    alone = curve_of(run, recipe)
    assert [row["keep"] for row in alone] == [4, 9, 16]
    for workers in (2, 5):
        rows = curve_of(run, recipe, workers)
        for mine, theirs in zip(alone, rows, strict=True):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert theirs[key] == pytest.approx(value, rel=1e-6, abs=1e-9), (key, workers)


def test_every_row_has_the_metrics_that_the_design_names(run: Run, recipe: Recipe) -> None:
    rows = curve_of(run, recipe)
    expected = {
        "keep",
        "merge_ratio",
        "rfd_random_v1",
        "rfd_random_v1_recovered",
        "psnr",
        "ssim",
        "psnr_recovered",
    }
    expected |= {"code_usage", "code_entropy_bits", "recovery_accuracy", "recovery_baseline", "majority_top1"}
    for feature in ("cls", "mean", "untrained"):
        expected |= {f"probe_top1_{feature}", f"probe_top1_{feature}_low", f"probe_top1_{feature}_high"}
        expected |= {
            f"knn_top1_{feature}",
            f"knn_k_{feature}",
            f"probe_C_{feature}",
            f"knn_top1_{feature}_k10",
        }
    expected |= {"ms_ssim_1_scales", "bits", "bits_entropy", "bits_source"}
    for row in rows:
        assert expected <= row.keys()
        assert row["probe_top1_cls_low"] <= row["probe_top1_cls"] <= row["probe_top1_cls_high"]
    assert not any("fid" in key for key in rows[0]), "no Inception measured this"


def test_with_all_tokens_kept_each_cell_is_its_own_cluster(run: Run, recipe: Recipe) -> None:
    row = curve_of(run, recipe)[-1]
    assert (row["keep"], row["merge_ratio"]) == (16, 0)
    assert row["recovery_baseline"] == 100


def test_evaluating_writes_files_and_never_a_second_point_at_the_same_step(
    run: Run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(2):
        api.evaluate("evaluated", home=home, keeps=(4, 9, 16), out=tmp_path / str(attempt))
    printed = capsys.readouterr().out
    assert "rank correlation" in printed
    assert str(tmp_path / "1" / "tradeoff.png") in printed.replace("\n", "")
    names = {path.name for path in (tmp_path / "0").iterdir()}
    assert names >= {"curve.json", "table.md", "table.csv", "tradeoff.png", "tradeoff.html", "clusters.png"}
    assert "reconstructions.png" in names

    assert sorted(read_metrics(run.directory / JOURNAL_NAME, "curve/")["curve/psnr"]) == [4, 9, 16]
    client = Store.at(home).client()
    found = list_runs(Store.at(home))
    assert len(found) == 2, "the training's run, and a linked one for the second evaluation"
    assert {client.get_run(entry.run_id).info.status for entry in found} == {"FINISHED"}
    for entry in found:
        images = [Path(file.path).name for file in client.list_artifacts(entry.run_id, "images")]
        assert len(images) == 2 * 2 * 3, "PNG and preview of two keys at three counts, and nothing else"
        assert entry.tags["mlflow.loggedImages"] == "True"
        history = client.get_metric_history(entry.run_id, "curve/psnr")
        assert sorted(point.step for point in history) == [4, 9, 16]


def test_images_without_labels_get_a_curve_without_a_probe(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        (source,) = Path(recipe.data.path).glob(f"{split}-*.parquet")
        pq.write_table(pq.read_table(source).select(["image"]), tmp_path / "data" / f"{split}-00000.parquet")
    curve = (
        task_of(recipe)
        .evaluator(
            recipe,
            run.newest_checkpoint(),
            EvaluationOptions(device="cpu", step=2, keeps=(4, 9, 16), data=str(tmp_path / "data")),
        )
        .report("x")
    )
    assert "psnr" in curve.rows[0]
    assert (curve.protocol["background"], "384 x 256" in curve.protocol["resizing"]) == ("white", True)
    assert not any("probe" in key for key in curve.rows[0])
    assert "no labels: no probe" in curve.verdict()


def test_the_caveat_of_a_teacher_that_saw_labels_is_in_the_protocol() -> None:
    assert "distillation, not self-supervision" in CAVEATS["stand_in"]


def test_an_unreachable_count_names_the_reachable_ones(recipe: Recipe) -> None:
    wording = r"cannot keep 3 of 16 tokens with 2 layers: the reachable counts are 4 to 16"
    with pytest.raises(InputError, match=wording):
        keeps_to_measure(recipe, (3,))
    with pytest.raises(InputError, match=wording):
        mergevq.create("test_gr").encode(torch.zeros(1, 3, 16, 16), keep=3)


def test_the_untrained_baseline_is_the_initialisation_of_that_very_run(run: Run, recipe: Recipe) -> None:
    spec = EvaluationSpec(run.newest_checkpoint(), recipe, recipe.data.path, "cpu")
    first, again = TokenizerWorker(spec).untrained(), TokenizerWorker(spec).untrained()
    trained = TokenizerWorker(spec).tokenizer
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    moved = [n for n, v in trained.state_dict().items() if not torch.equal(v, first.state_dict()[n])]
    assert len(moved) > 20


def test_reconstructing_image_files_writes_both_grids(run: Run, home: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    files = reconstruction.reconstruct(
        "evaluated", [tmp_path / "photo.png"], home=home, keeps=[4, 16], out=tmp_path / "out"
    )
    assert {file.name for file in files} == {"reconstructions.png", "clusters.png"}
    assert all(Image.open(file).size[0] > 100 for file in files)


def test_files_that_are_no_images_are_all_named_before_anything_is_made(
    run: Run, home: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    Image.effect_noise((40, 30), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:500])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("no image")
    names = ["photo.png", "cut.jpg", "empty.png", "readme.txt", ".", "nowhere.png"]
    with pytest.raises(InputError) as refusal:
        reconstruction.reconstruct(
            "evaluated", [tmp_path / name for name in names], home=home, keeps=[4], out=tmp_path / "out"
        )
    for said in (
        r"cut.jpg cannot be decoded (",
        r"empty.png holds no bytes",
        r"readme.txt is not an image",
        f"{tmp_path} cannot be read (is a directory)",
        r"nowhere.png cannot be read (no such file",
    ):
        assert said in str(refusal.value)
    assert "photo.png" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_transparent_pixels_of_a_file_are_put_on_white_and_that_is_said(
    run: Run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "white.png")
    made = [
        reconstruction.reconstruct(
            "evaluated", [tmp_path / f"{name}.png"], home=home, keeps=[4], out=tmp_path / name
        )[0].read_bytes()
        for name in ("clear", "white")
    ]
    assert made[0] == made[1]
    assert capsys.readouterr().err.splitlines() == [
        f"transparent pixels become white: {tmp_path / 'clear.png'}"
    ]


def test_a_thin_file_is_reconstructed_from_its_middle(run: Run, home: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (200_000, 1), "teal").save(tmp_path / "line.png")
    reconstruction.reconstruct(
        "evaluated", [tmp_path / "line.png"], home=home, keeps=[4], out=tmp_path / "out"
    )
    assert (tmp_path / "out" / "reconstructions.png").is_file()


def test_what_was_reconstructed_is_not_written_over(run: Run, home: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clusters.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"--out .*out holds clusters\.png already: name another folder"):
        reconstruction.reconstruct(
            "evaluated", [tmp_path / "photo.png"], home=home, keeps=[4], out=tmp_path / "out"
        )
    assert (tmp_path / "out" / "clusters.png").read_bytes() == b"mine"


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_an_inception_that_is_no_weights_file_is_named_by_its_option(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "inception.pth"
    if content is not None:
        file.write_bytes(content)
    assert cli.run(["evaluate", "--images", str(tmp_path), "--inception", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mergevq: --inception: ")
    assert str(file) in line


def test_the_files_of_training_alone_may_be_gone(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    """Teacher and LPIPS of the losses; the untrained baseline is initialised without them."""
    gone = str(tmp_path / "gone.pth")
    losses = {
        "alignment": {"kind": "timm", "model": "vit_small_patch14_dinov2", "weights": gone},
        "perceptual": {"kind": "lpips", "backbone": gone, "heads": gone},
    }
    trained_with = resolve(merged(to_tree(recipe), {"task": {"losses": losses}}))

    def row(recipe: Recipe) -> dict[str, float]:
        return (
            task_of(recipe)
            .evaluator(recipe, run.newest_checkpoint(), EvaluationOptions(device="cpu", keeps=(9,)))
            .report("x")
            .rows[0]
        )

    assert row(trained_with) == row(recipe)


def test_weights_that_training_began_with_are_needed_by_the_untrained_baseline_alone(
    run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    begun = resolve(merged(to_tree(recipe), {"task": {"initial_weights": str(tmp_path / "gone.pth")}}))
    curve = (
        task_of(begun)
        .evaluator(begun, run.newest_checkpoint(), EvaluationOptions(device="cpu", keeps=(9,)))
        .report("x")
    )
    assert "probe_top1_cls" in curve.rows[0]
    assert not any("untrained" in key for key in curve.rows[0])
    assert "are not there: no untrained baseline" in " ".join(curve.verdict())


def test_a_probe_is_fitted_once_for_the_same_features(
    run: Run, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose features come back, as those of an encoder that does not know the kept count would."""
    fitted = []
    inner = probing.linear_probe

    def counting(*tensors: torch.Tensor) -> Any:
        fitted.append(len(tensors[0]))
        return inner(*tensors)

    features = tokenizer_worker.features
    monkeypatch.setattr(probing, "linear_probe", counting)
    monkeypatch.setattr(tokenizer_worker, "features", lambda model, images, keep: features(model, images, 9))
    evaluator = task_of(recipe).evaluator(
        recipe,
        run.newest_checkpoint(),
        EvaluationOptions(device="cpu", keeps=(4, 9, 16), suites=("representation",)),
    )
    rows = evaluator.report("x").rows
    assert len(rows) == 3
    assert rows[0]["probe_top1_cls"] == rows[2]["probe_top1_cls"]
    assert len(fitted) == 4, "cls and mean, trained and untrained"
