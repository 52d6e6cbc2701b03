"""Notes in MLflow: the answer in the first line, renewed as long as they are ours, a person's for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.note import linked_figure
from mergevq_platform.evaluation.report import record
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.experiment_note import write_note
from mergevq_platform.tracking.listing import find_run
from mergevq_platform.tracking.notes import NOTE_CHARS, NOTE_TAG, artifact_address, may_write, sealed
from mergevq_platform.tracking.protocols import protocol_id, protocol_of
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.writer import sync

KEPT = (9, 16, 25)


def curve(name: str, distance: float, probe: float, data: str = "0011") -> Curve:
    rows = [
        {
            "keep": float(kept),
            "merge_ratio": 1 - kept / 64,
            "rfd_random_v1": distance + 1 / kept,
            "rfd_random_v1_recovered": distance + 2 / kept,
            "psnr": 15.0 + kept / 10,
            "ssim": 0.5,
            "probe_top1_cls": probe - kept,
            "probe_top1_untrained": 20.0,
            "recovery_accuracy": 60.0,
            "recovery_baseline": 20.0,
            "bits": 18.0 * kept,
        }
        for kept in KEPT
    ]
    protocol = {
        "suites": ["reconstruction", "representation"],
        "frechet_key": "rfd_random_v1",
        "extractor": {"name": "random_v1", "description": "random features"},
        "images": 64,
        "split": "val",
        "data": "data/shapes",
        "data_fingerprint": data,
        "step": 20,
        "ema": True,
        "checkpoint": "somewhere",
        "caveat": "The teacher has seen the labels.",
    }
    return Curve(name, rows, protocol)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.at(tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


def evaluated(store: Store, folder: Path, experiment: str, found: Curve) -> None:
    recorder = LocalRecorder(folder / found.run, store, RunIdentity(name=found.run, experiment=experiment))
    recorder.params({"description": "A recipe."})
    recorder.tags({NOTE_TAG: "A recipe."})
    record(found, {}, recorder, "A recipe.")
    report = recorder.close("FINISHED", timeout_seconds=120)
    assert report is not None
    assert report.complete, report


def experiment_note(store: Store, name: str) -> str:
    found = store.client().get_experiment_by_name(name)
    assert found is not None
    return found.tags.get(NOTE_TAG, "")


def test_a_seal_tells_our_notes_from_those_that_a_person_wrote_or_edited() -> None:
    ours = sealed("**0.24** at 25 kept tokens")
    assert ours.startswith("**0.24** at 25 kept tokens\n")
    assert may_write({})
    assert may_write({NOTE_TAG: " "})
    assert may_write({NOTE_TAG: ours})
    assert not may_write({NOTE_TAG: "mine"})
    assert not may_write({NOTE_TAG: ours.replace("0.24", "0.25")})
    assert not may_write({NOTE_TAG: f"{ours}\nand mine"})
    assert not may_write({NOTE_TAG: f"mine\n{ours}"})
    assert may_write({NOTE_TAG: "A recipe."}, former=["A recipe."])
    long = sealed("x" * 3 * NOTE_CHARS)
    assert len(long) == NOTE_CHARS
    assert may_write({NOTE_TAG: long})
    assert "run_uuid=0a1b" in sealed(f"![figure]({artifact_address('curve/tradeoff.png')})", "0a1b")


def test_the_note_of_a_run_answers_in_its_first_line_and_shows_seven_columns_and_the_figure() -> None:
    found = curve("run", 0.2, 90.0)
    figure = linked_figure("curve", Path("somewhere/tradeoff.png"))
    note = found.note("A recipe.", {"tradeoff.png": figure})
    lines = note.splitlines()
    assert (
        lines[0]
        == "**Fréchet distance 0.24 (`rfd_random_v1`) at 25, probe 81.0% at 9, PSNR 17.50 dB at 25 kept tokens**"
    )
    assert lines[2:5] == [f"- {sentence}" for sentence in found.verdict()[:3]]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(KEPT)
    assert {line.count("|") - 1 for line in table} == {7}
    for word in ("kept", "rfd_random_v1", "PSNR", "probe", "untrained", "recovery"):
        assert word in table[0]
    for name in ("tradeoff_narrow.png", "tradeoff.png"):
        assert f"(get-artifact?path=curve%2F{name}&run_uuid=$MLFLOW_RUN_ID)" in figure
    assert lines[-1] == "A recipe."
    assert note.index("|") < note.index(figure) < note.index("The teacher has seen the labels.")


def test_a_run_has_few_tags_of_its_protocol_and_its_note_names_the_run_of_the_server(
    store: Store, tmp_path: Path
) -> None:
    found = curve("tagged", 0.2, 90.0)
    figure = tmp_path / "tradeoff.png"
    Image.new("RGB", (1200, 600), "teal").save(figure)
    recorder = LocalRecorder(tmp_path / "run", store, RunIdentity(name="tagged", experiment="tags"))
    record(found, {"tradeoff.png": figure}, recorder, "")
    recorder.close("FINISHED", timeout_seconds=120)
    run = find_run(store, "tagged")
    of_protocol = {key: value for key, value in run.tags.items() if key.startswith("protocol.")}
    assert of_protocol.keys() == {"protocol.frechet_key", "protocol.caveat", "protocol.id"}
    assert run.tags[NOTE_TAG].count(f"run_uuid={run.run_id}") == 2
    assert "$MLFLOW_RUN_ID" not in run.tags[NOTE_TAG]
    assert may_write(run.tags)
    artifacts = {file.path for file in store.client().list_artifacts(run.run_id, "curve")}
    assert artifacts == {"curve/tradeoff.png", "curve/tradeoff_narrow.png"}
    with Image.open(tmp_path / "tradeoff_narrow.png") as narrow:
        assert narrow.size == (520, 260)


def test_runs_of_before_and_of_now_have_one_id_for_one_protocol() -> None:
    now = {"extractor.name": "random_v1", "images": 64, "data_fingerprint": "0011", "weights_sha256": "a"}
    before = {f"protocol.{key}": str(value) for key, value in (now | {"weights_sha256": "b"}).items()}
    assert protocol_of(before) == protocol_of({"protocol.id": protocol_id(now)}) == protocol_id(now)
    assert protocol_of(before | {"protocol.data_fingerprint": "22"}) != protocol_id(now)
    assert protocol_of({"mergevq.uid": "1"}) is None


def test_the_note_of_an_experiment_names_the_best_run_so_far_of_every_goal_and_is_renewed(
    store: Store, tmp_path: Path
) -> None:
    evaluated(store, tmp_path, "notes", curve("first", 0.2, 90.0))
    first = find_run(store, "first")
    line, *_ = experiment_note(store, "notes").splitlines()
    assert line.startswith(
        "best Fréchet distance (`rfd_random_v1`) **0.24** with 25 kept tokens, best probe **81.0%** with 9 kept tokens ([first](#/exp"
    )
    assert f"#/experiments/{first.experiment_id}/runs/{first.run_id}?workflowType=machine_learning" in line
    assert line.split(": ")[-1].startswith(f"[trade-off page](#/experiments/{first.experiment_id}/runs?")

    evaluated(store, tmp_path, "notes", curve("second", 0.1, 80.0))
    line = experiment_note(store, "notes").splitlines()[0]
    assert "**0.14** with 25 kept tokens ([second](" in line
    assert "**81.0%** with 9 kept tokens ([first](" in line, "the other goal is still the first run's"

    evaluated(store, tmp_path, "notes", curve("elsewhere", 0.01, 99.0, data="2233"))
    line, _, other, *_ = experiment_note(store, "notes").splitlines()
    assert "**0.05**" in line
    assert "([second](" not in line, "another protocol's numbers are not compared"
    assert other.startswith("By another protocol: best Fréchet distance")
    assert "([second](" in other


def test_a_note_that_someone_wrote_or_edited_stays(store: Store, tmp_path: Path) -> None:
    evaluated(store, tmp_path, "kept notes", curve("one", 0.2, 90.0))
    client = store.client()
    run = find_run(store, "one")
    mine = experiment_note(store, "kept notes").replace("best", "BEST")
    client.set_experiment_tag(run.experiment_id, NOTE_TAG, mine)
    client.set_tag(run.run_id, NOTE_TAG, "my own words")
    evaluated(store, tmp_path, "kept notes", curve("two", 0.1, 95.0))
    assert experiment_note(store, "kept notes") == mine
    with open_for_curve(tmp_path / "one") as again:
        again_dir = again.run_dir
    with LocalRecorder(tmp_path / "one", None).journal as journal:
        journal.append_tags({NOTE_TAG: "renewed by us"})
    assert sync(tmp_path / "one", store).complete
    assert find_run(store, run.uid).tags[NOTE_TAG] == "my own words"
    assert again_dir != tmp_path / "one"
    client.set_experiment_tag(run.experiment_id, NOTE_TAG, "")
    assert write_note(client, run.experiment_id), "an emptied note is restored"
    assert "([two](" in experiment_note(store, "kept notes")


def test_runs_of_before_take_part(store: Store, tmp_path: Path) -> None:
    old = curve("before", 0.05, 70.0)
    recorder = LocalRecorder(tmp_path / "before", store, RunIdentity(name="before", experiment="old notes"))
    rows = {int(row["keep"]): {k: v for k, v in row.items() if k != "keep"} for row in old.rows}
    recorder.curve(rows)
    flat = {"extractor.name": "random_v1", "extractor.description": "random features", "images": "64"}
    flat |= {
        "split": "val",
        "data_fingerprint": "0011",
        "frechet_key": "rfd_random_v1",
        "data": "data/shapes",
    }
    recorder.tags({f"protocol.{key}": value for key, value in flat.items()})
    recorder.close("FINISHED", timeout_seconds=120)
    evaluated(store, tmp_path, "old notes", curve("now", 0.2, 90.0))
    line = experiment_note(store, "old notes").splitlines()[0]
    assert "**0.09** with 25 kept tokens ([before](" in line
    assert "**81.0%** with 9 kept tokens ([now](" in line
    assert (tmp_path / "before" / JOURNAL_NAME).is_file()
