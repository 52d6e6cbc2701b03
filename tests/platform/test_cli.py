"""The command line as a person meets it: help, one-line errors with the fix, exit statuses, nothing half-written."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe_file(small_recipe: dict[str, Any], at_home: Path) -> Path:
    path = at_home / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe))
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    assert cli.run(arguments) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for verb in (
        "data",
        "train",
        "evaluate",
        "reconstruct",
        "import-official",
        "recipes",
        "sync",
        "ui",
        "submit",
        "jobs",
        "doctor",
        "plan",
    ):
        assert verb in text


def verbs_of(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb below a parser, and the verbs that hold others."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield " ".join((*words, name)), below
                yield from verbs_of(below, (*words, name))


VERBS = dict(verbs_of(cli.build_parser()))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_explains_itself(verb: str) -> None:
    parser = VERBS[verb]
    text = parser.format_help()
    assert parser.description
    assert len(parser.description.split()) > 5, "a sentence, not the line of the list again"
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, f"{verb}: no help for {action.option_strings or action.dest}"
            assert action.help.strip() not in ("", action.dest)
    head, _, shown = (parser.epilog or "").partition("\n")
    assert head in ("example:", "examples:"), f"{verb} shows no example"
    for line in shown.splitlines():
        assert line in text, "an example is not wrapped"
        assert line.startswith(f"  mergevq {verb}")
        assert len(line) < 80
        cli.parse(shlex.split(line)[1:])


def test_every_verb_and_every_group_is_listed_with_a_line_of_help() -> None:
    for parser in (cli.build_parser(), *VERBS.values()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                listed = {choice.dest: choice.help for choice in action._choices_actions}
                assert set(listed) == set(action.choices)
                assert all(listed.values()), listed


def test_the_console_command_is_installed() -> None:
    command = Path(sys.executable).with_name("mergevq")
    if not command.exists():
        pytest.skip("the package is not installed here")
    answer = subprocess.run([command, "recipes"], capture_output=True, text=True, check=True)
    assert "demo" in answer.stdout


def test_recipes_prints_a_complete_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "demo", "steps=3", "seed=4"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert (tree["steps"], tree["seed"]) == (3, 4)
    assert tree["task"]["model"]["encoder"]["kind"] == "hybrid"


def test_data_verbs_make_and_describe_images(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["data", "shapes", "images", "--images", "24", "--validation-images", "8", "--size", "16"]
    assert cli.run(made) == 0
    assert cli.run(["data", "info", "images", "--sheet", "sheet.png"]) == 0
    assert "24" in capsys.readouterr().out
    assert (at_home / "sheet.png").stat().st_size > 1000


def test_a_folder_is_packed_with_its_labels_file_and_verified(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home / "photos").mkdir()
    rows = ["file,class"]
    for index in range(12):
        Image.new("RGB", (20, 16), (20 * index, 0, 0)).save(at_home / "photos" / f"{index}.png")
        rows.append(f"{index}.png,{'dark' if index < 6 else 'bright'}")
    (at_home / "labels.csv").write_text("\n".join(rows))
    pack = ["data", "pack", "photos", "packed", "--serial", "--labels", "labels.csv"]
    assert cli.run([*pack, "--validation-fraction", "0.25", "--size", "8"]) == 0
    assert cli.run(["data", "info", "packed", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "2 classes" in said or "bright" in said
    assert "all shards match" in said
    shard = next((at_home / "packed").glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert shard.name in refused(["data", "info", "packed", "--verify"], capsys)


def test_a_class_called_like_a_split_is_chosen_by_an_option(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, name in enumerate(("pass", "test", "test")):
        (at_home / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (80 * index, 0, 0)).save(at_home / "photos" / name / f"{index}.png")
    assert "--splits none" in refused(["data", "pack", "photos", "packed", "--serial"], capsys)
    assert "--splits none" in refused(["data", "info", "photos"], capsys)
    assert cli.run(["data", "info", "photos", "--splits", "none"]) == 0
    asked = capsys.readouterr().out
    assert cli.run(["data", "pack", "photos", "packed", "--serial", "--splits", "none"]) == 0
    said = capsys.readouterr().out
    for text in (asked, said):
        assert "classes   2: pass (1), test (2)" in text
        assert "class at  depth 1: the folders like pass" in text


def test_messages_name_the_options_of_columns_as_typed(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home / "set").mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    table = pa.table({"image": [stream.getvalue()] * 4, "Motiv": ["a", "b", "a", "b"]})
    pq.write_table(table, at_home / "set/train.parquet")
    pack = ["data", "pack", "set", "packed", "--serial"]
    for verb in (["data", "info", "set"], pack):
        said = refused([*verb, "--label-column", "Art"], capsys)
        assert "has no column 'Art', only image, Motiv: correct --label-column" in said
        assert "correct --image-column" in refused([*verb, "--image-column", "Bild"], capsys)
    assert "--validation-fraction 0.01 of 4 images" in refused(
        [*pack, "--validation-fraction", "0.01"], capsys
    )
    assert cli.run(["data", "info", "set"]) == 0
    assert "other columns: Motiv: --label-column reads one" in capsys.readouterr().out
    assert cli.run(pack) == 0
    assert "other columns: Motiv: --label-column reads one" in capsys.readouterr().out


def test_an_official_checkpoint_is_imported_and_measured(
    recipe_file: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Path(__file__).parents[1] / "parity" / "reference"
    checkpoint = str(reference / "gr_tiny.weights.safetensors")
    assert (
        cli.run(["import-official", checkpoint, "imported", "--config", str(reference / "gr_tiny.yaml")]) == 0
    )
    assert "recovery" in capsys.readouterr().out
    Image.linear_gradient("L").save(at_home / "gradient.png")
    assert cli.run(["reconstruct", "imported", "gradient.png", "--keep", "144", "36", "--out", "out"]) == 0
    assert all(Path(line).stat().st_size > 1000 for line in capsys.readouterr().out.split())

    assert "--recipe" in refused(["evaluate", "imported"], capsys)
    small = ["--recipe", str(recipe_file), "--keep", "64", "--json", "curve.json", "--out", "figures"]
    assert cli.run(["evaluate", "imported", *small]) == 0
    said = capsys.readouterr().out
    assert "weights as saved in imported" in " ".join(said.split())
    assert (at_home / "curve.json").is_file()


def test_overrides_may_stand_after_options(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["train", str(recipe_file), "--name", "x", "optimizer.lr=1"], capsys)
    assert "unknown key 'optimizer.lr'" in line
    assert "learning_rate" in line


MISTAKES = [
    (["train"], "give a recipe"),
    (["train", "nowhere"], "no recipe 'nowhere'"),
    (["train", "RECIPE", "data.path=/nowhere/at/all"], "/nowhere/at/all"),
    (["train", "RECIPE", "global_batch=512", "micro_batch=512"], "fewer than global_batch 512"),
    (["train", "RECIPE", "task.initial_weights=/nowhere.safetensors"], "/nowhere.safetensors"),
    (["train", "RECIPE", "task.losses.alignment={kind: stand_in, directory: /nowhere}"], "/nowhere"),
    (["train", "--resume", "nobody"], "no run 'nobody'"),
    (["train", "RECIPE", "--urgent"], "has one here: give --address"),
    (
        ["submit", "--urgent", "--", "evaluate", "RUN"],
        "--urgent is for train, and after -- stands 'evaluate'",
    ),
    (["evaluate", "nobody"], "no run 'nobody'"),
    (["sync", "nobody"], "no run 'nobody'"),
    (["data", "info", "/nowhere"], "/nowhere"),
    (["data", "pack", "/nowhere", "out", "--serial"], "/nowhere"),
    (["import-official", "/nowhere.ckpt", "out", "--preset", "gr_256_d32"], "/nowhere.ckpt"),
]


@pytest.mark.ray
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake[0])[:60])
def test_a_mistake_is_one_line_and_exit_status_2(
    mistake: tuple[list[str], str],
    recipe_file: Path,
    at_home: Path,
    ray_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, named = mistake
    before = {path for path in at_home.rglob("*") if path.is_file()}
    line = refused([str(recipe_file) if word == "RECIPE" else word for word in arguments], capsys)
    assert named in line
    new = {path.name for path in at_home.rglob("*") if path.is_file()} - {path.name for path in before}
    assert not {name for name in new if name.endswith((".safetensors", ".parquet", ".pt"))}, (
        "nothing is half-written"
    )


def test_read_only_storage_is_said_before_anything_starts(
    recipe_file: Path, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_home / "a_file").write_text("")
    line = refused(["train", str(recipe_file), "--storage", str(at_home / "a_file" / "below")], capsys)
    assert "cannot write to" in line
    assert "--storage" in line


def test_an_unusable_storage_uri_is_said(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ftp://nowhere" in refused(["train", str(recipe_file), "--storage", "ftp://nowhere/x"], capsys)


def test_failures_of_ours_have_exit_status_1_and_point_to_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: object) -> None:
        raise ZeroDivisionError("integer division")

    monkeypatch.setattr(cli.training, "_recipes", broken)
    line = refused(["recipes"], capsys, status=1)
    assert "ZeroDivisionError: integer division (--debug shows the traceback)" in line
    assert cli.run(["--debug", "recipes"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_cause_is_found_inside_rays_wrappers() -> None:
    class Wrapper(RuntimeError):
        worker_failures = {1: RuntimeError("later"), 0: InputError("the cause")}  # noqa: RUF012

    assert cli.one_line(Wrapper("noise")) == "the cause"


def test_running_out_of_memory_says_what_to_lower() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56)
    for error in (
        caught.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    ):
        line = cli.one_line(error)
        assert line.startswith("out of memory")
        assert "micro_batch" in line


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import errno

    def full(options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/shard")

    monkeypatch.setattr(cli.training, "_recipes", full)
    assert "no space left on device (/data/shard)" in refused(["recipes"], capsys, status=1)


def test_a_verb_may_return_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for returned, status in ((130, 130), (0, 0), (None, 0)):
        monkeypatch.setattr(cli.training, "_recipes", lambda options, returned=returned: returned)
        assert cli.run(["recipes"]) == status


def test_an_urgent_submission_is_an_urgent_training() -> None:
    for words in (["train", "demo", "steps=4"], ["train", "--urgent", "demo", "steps=4"]):
        assert cli.cluster._urgent(words) == ["train", "--urgent", "demo", "steps=4"]


def test_lists_may_be_given_in_one_go_or_one_by_one() -> None:
    options = cli.parse(
        ["evaluate", "run", "--probe", "mergevq", "--keep", "9", "--probe", "dinov2", "--keep", "16", "25"]
    )
    assert options.probe == ["mergevq", "dinov2"]
    assert options.keep == [9, 16, 25]


def test_the_storage_of_the_environment_is_that_of_train_and_sweep_and_the_flag_wins(
    recipe_file: Path, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, other = at_home / "shared", at_home / "other"
    for storage in (shared, other):
        (storage / "taken").mkdir(parents=True)
    monkeypatch.setenv("MERGEVQ_STORAGE", str(shared))
    train = ["train", str(recipe_file), "--name", "taken"]
    sweep = ["sweep", str(recipe_file), "--over", "seed=0,1", "--name", "taken"]
    for words in (train, sweep):
        assert f"run 'taken' exists already in {shared}" in refused(words, capsys)
        assert f"run 'taken' exists already in {other}" in refused([*words, "--storage", str(other)], capsys)


def test_a_run_of_the_home_is_found_there_whatever_storage_the_environment_names(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, shared = at_home / "runs", str(at_home / "shared")
    checkpoint = home / "ray" / "before" / checkpoints.directory_name(4)
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (home / "ray" / "before" / "recipe.yaml").write_text("name: before\n")
    here = str(home / "ray")
    assert Run.find("before", home=home, storage=shared).storage == here
    assert Run.find("runs/ray/before", home=home, storage=shared).storage == here
    moved = at_home / "shared" / "before" / checkpoint.name
    moved.mkdir(parents=True)
    (moved / "checkpoint.json").write_text("{}")
    assert Run.find("before", home=home, storage=shared).storage == shared


def test_a_recipe_beside_resume_and_a_change_without_a_value_are_told_apart(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not both" in refused(["train", str(recipe_file), "--resume", "run"], capsys)
    assert "'steps' changes no key" in refused(["train", str(recipe_file), "steps", "4"], capsys)
    assert "not both" in refused(["evaluate", "run", "--images", "folder"], capsys)


def test_plan_requires_no_changes_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["plan"])
    assert "a.b=c" not in capsys.readouterr().err.splitlines()[-1]


def test_a_reader_that_has_left_is_no_error(at_home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    made = subprocess.run(
        [sys.executable, "-m", "mergevq_platform", "recipes", "demo"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (made.returncode, made.stderr) == (cli.READER_LEFT, b"")
