"""What a paper prints stands before its details, in MLflow's charts as in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergevq_platform.evaluation.classifier_report import ClassifierReport
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity, read_metrics

ROW = {
    "merge_ratio": 0.75,
    "rfd_random_v1": 0.4,
    "rfd_random_v1_recovered": 0.8,
    "rsfd_random_v1": 0.9,
    "reconstruction_precision_random_v1": 0.5,
    "psnr": 18.0,
    "psnr_recovered": 17.0,
    "ssim": 0.6,
    "lpips_vgg": 0.3,
    "code_usage": 0.2,
    "code_entropy_bits": 9.0,
    "bits": 288.0,
    "bits_source": 64.0,
    "probe_top1_cls": 88.0,
    "probe_top1_cls_low": 86.0,
    "probe_mae_top1_cls": 80.0,
    "probe_top1_untrained": 23.0,
    "probe_C_cls": 0.1,
    "knn_top1_cls": 70.0,
    "majority_top1": 9.0,
    "recovery_accuracy": 60.0,
    "recovery_baseline": 24.0,
}
PRINTED = {
    *("rfd_random_v1", "rfd_random_v1_recovered", "psnr", "ssim", "lpips_vgg", "code_usage"),
    *("code_entropy_bits", "bits", "probe_top1_cls", "probe_mae_top1_cls", "probe_top1_untrained"),
    "recovery_accuracy",
}


def recorded(
    report: Curve | GeneratorReport | ClassifierReport, path: Path
) -> Mapping[str, dict[int, float]]:
    recorder = LocalRecorder(path, None, RunIdentity(name="run", experiment="headlines"))
    report.record_rows(recorder)
    recorder.close("FINISHED")
    return read_metrics(path / JOURNAL_NAME)


def keys(metrics: Mapping[str, object], prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in metrics if key.startswith(prefix)}


def test_a_curves_headline_its_details_and_its_best_have_prefixes_of_their_own(tmp_path: Path) -> None:
    rows = [{"keep": 16.0, **ROW}, {"keep": 64.0, **ROW, "rfd_random_v1": 0.3, "probe_top1_cls": 87.0}]
    metrics = recorded(Curve("run", rows, {"frechet_key": "rfd_random_v1"}), tmp_path)
    assert keys(metrics, "curve/") == PRINTED | {"kept_tokens"}
    assert keys(metrics, "curve_details/") == ROW.keys() - PRINTED
    assert metrics["curve/psnr"] == {16: 18.0, 64: 18.0}
    assert metrics["curve_details/knn_top1_cls"] == {16: 70.0, 64: 70.0}
    assert metrics["curve_best/rfd_random_v1"] == {64: 0.3}, "the smallest distance, at its kept count"
    assert metrics["curve_best/probe_top1_cls"] == {16: 88.0}, "the largest accuracy, at its kept count"
    sections = sorted({key.partition("/")[0] for key in metrics})
    assert sections[0] == "curve", "MLflow sorts sections by name"


def test_a_generators_headline_comes_before_its_details(tmp_path: Path) -> None:
    names = {"frechet": "gfid", "inception_score": "inception_score", "precision": "precision"}
    names |= {"recall": "recall", "spatial_frechet": "gsfid"}
    row = {"gfid": 9.0, "gsfid": 11.0, "inception_score": 50.0, "precision": 0.7, "recall": 0.5}
    row |= {"class_top1": 60.0, "class_top1_low": 55.0, "neighbour_ratio": 1.1, "tokens_per_second": 9.0}
    rows = [{"scale": 1.0, **row}, {"scale": 2.0, **row, "gfid": 8.0}]
    protocol = {"keys": names, "generator": {"step": 700}}
    metrics = recorded(GeneratorReport("run", rows, {"real": row}, protocol), tmp_path)
    printed = {"gfid", "inception_score", "precision", "recall", "class_top1"}
    assert keys(metrics, "cfg_curve/") == printed | {"guidance_scale"}
    assert keys(metrics, "cfg_curve_details/") == row.keys() - printed
    assert keys(metrics, "cfg_reference/") == {f"{key}_real" for key in printed}
    assert keys(metrics, "cfg_reference_details/") == {f"{key}_real" for key in row.keys() - printed}
    assert metrics["cfg_curve_best/gfid"] == {200: 8.0}


def test_a_classifiers_top1_stands_alone_and_marks_the_run_as_evaluated(tmp_path: Path) -> None:
    row = {"top1": 70.0, "top1_low": 68.0, "top1_high": 72.0, "undecodable": 1.0}
    metrics = recorded(ClassifierReport("run", [row], {"step": 8}), tmp_path / "labelled")
    assert keys(metrics, "test/") == {"top1"}
    assert keys(metrics, "test_details/") == {"top1_low", "top1_high", "undecodable"}
    metrics = recorded(ClassifierReport("run", [{"unlabelled": 4.0}], {"step": 8}), tmp_path / "bare")
    assert metrics == {"test_details/unlabelled": {8: 4.0}}
    for name in ("labelled", "bare"):
        with Journal(tmp_path / name / JOURNAL_NAME) as journal:
            assert journal.evaluated
        with open_for_curve(tmp_path / name) as again:
            assert again.identity.evaluates is not None


def test_details_may_be_measured_in_any_order_each_step_once(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL_NAME, RunIdentity(name="run", experiment="headlines")) as journal:
        for key in ("curve_details/ssim_std", "curve_best/psnr", "cfg_curve_details/gsfid"):
            assert journal.append_metrics(64, {key: 1.0}) == 1
            assert journal.append_metrics(4, {key: 2.0}) == 1
            assert journal.append_metrics(64, {key: 3.0}) == 0
