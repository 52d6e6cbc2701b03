"""What a name means: runs here, runs that only the tracking store knows, registered models; and models in a fresh process."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mergevq
from mergevq.errors import InputError
from mergevq_platform import cli, loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import api, registering
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import places_of_runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.sweeps import Grid, Sweep, choice, sample_frechet
from mergevq_platform.tasks.probe import ProbeTask
from mergevq_platform.tracking import models
from mergevq_platform.tracking.listing import find_run, list_runs, stored_curve
from mergevq_platform.tracking.models import fetch_model
from mergevq_platform.tracking.serving import ServedTokenizer
from mergevq_platform.tracking.store import Store
from trained_runs import trained_run


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The home that trained, and another that has nothing but the address of the same tracking store."""
    root = tmp_path_factory.mktemp("homes")
    return root / "trained", root / "elsewhere"


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"images": 32, "probe_images": 48, "untrained_baseline": False}
    return resolve(small_recipe | {"steps": 1, "checkpoint_every": 1})


@pytest.fixture
def run(recipe: Recipe, homes: tuple[Path, Path]) -> Run:
    """A run in the store, trained without Ray; made once, with its curve."""
    home = homes[0]
    run = trained_run("tokens", home, lambda: recipe)
    curve = run.directory / "curve-first"
    if not curve.exists():
        api.evaluate("tokens", home=home, keeps=(4, 16), out=curve)
    return run


def test_a_run_is_shown_with_its_curve_and_verdict_first_and_its_recipe_on_request(
    run: Run, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(homes[0]))
    assert cli.run(["runs", "show", "tokens"]) == 0
    short = capsys.readouterr().out.splitlines()
    assert short[0].startswith("tokens  tokenizer  finished")
    for word in ("kept", "PSNR", "fewer than three kept counts"):
        assert any(word in line for line in short), short
    assert not any("optimizer.learning_rate" in line for line in short)
    assert short[-1].startswith("recipe: ")
    assert "mergevq runs show tokens --recipe" in short[-1]
    assert len(short) < 30
    assert cli.run(["runs", "show", "tokens", "--recipe"]) == 0
    full = capsys.readouterr().out.splitlines()
    assert full[: len(short) - 1] == short[:-1], "the recipe comes after the curve"
    assert "  optimizer.learning_rate = 0.001" in full


def test_a_run_is_measured_again_from_the_tracking_store_alone(
    run: Run, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, elsewhere = homes
    store = Store.at(trained)
    monkeypatch.setenv("MERGEVQ_HOME", str(elsewhere))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.chdir(homes[0].parent)
    origin = find_run(store, "tokens")
    before = stored_curve(store, origin)
    options = ["--keep", "9", "--suite", "reconstruction", "--json", "again.json"]
    assert cli.run(["evaluate", origin.run_id[:10], *options]) == 0
    row = json.loads(Path("again.json").read_text())["rows"][0]
    assert not any("probe" in key for key in row)
    (again,) = [found for found in list_runs(store) if found.evaluates == origin.uid]
    assert stored_curve(store, again)["psnr"] == {9: pytest.approx(row["psnr"])}
    assert stored_curve(store, origin) == before, "the training's own curve stays as it is"
    assert cli.run(["evaluate", again.name, *options, "--no-tracking"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert cli.run(["evaluate", origin.name, "--suite", "generation"]) == 2
    assert "tokens is a tokenizer, which generates no images" in capsys.readouterr().err
    assert cli.run(["evaluate", "nobody"]) == 2
    assert "none of that name or id in sqlite" in capsys.readouterr().err


def test_a_registered_model_loads_in_a_fresh_process_and_is_measured_by_its_name(
    run: Run, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = homes[0]
    store = Store.at(home)
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    monkeypatch.chdir(home)
    assert cli.run(["register", "tokens", "--name", "shapes", "--alias", "champion"]) == 0
    assert "models:/shapes@champion  version 1" in capsys.readouterr().out

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.save("images.npy", images)
    script = (
        "import sys, numpy, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/shapes@champion')\n"
        "images = numpy.load('images.npy')\n"
        "answer = model.predict(images, params={'keep': 9, 'output': 'all'})\n"
        "numpy.savez('answer.npz', all=model.predict(images)['indices'], **answer)\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, store.uri], check=True, timeout=300)
    answer = np.load("answer.npz")
    tokenizer = mergevq.load(run.newest_checkpoint())
    encoded = tokenizer.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, 9)
    assert np.array_equal(answer["indices"], encoded.indices.numpy())
    assert np.array_equal(answer["source"], encoded.source.assignment.numpy())
    assert np.allclose(answer["features"], encoded.summary.detach().numpy(), atol=1e-5)
    assert answer["reconstructions"].dtype == np.uint8
    assert answer["all"].shape == (3, 16)

    client = store.client()
    model = client.get_logged_model(
        client.get_model_version_by_alias("shapes", "champion").tags["mergevq.model"]
    )
    measured = {metric.key: metric for metric in model.metrics if metric.step == 16}
    assert measured["model/psnr"].value == pytest.approx(
        stored_curve(store, find_run(store, "tokens"))["psnr"][16]
    )
    assert measured["model/psnr"].dataset_name == Path(loop_data(run)).name
    assert model.source_run_id == find_run(store, "tokens").run_id

    assert cli.run(["evaluate", "models:/shapes@champion", "--keep", "4", "--suite", "reconstruction"]) == 0
    said = capsys.readouterr().out
    assert "models:/shapes@champion: trade-off over kept tokens" in " ".join(said.split())
    again = next(found for found in list_runs(store) if found.evaluates == find_run(store, "tokens").uid)
    assert 4 in stored_curve(store, again)["psnr"], "recorded as a run linked to the one that trained it"
    for wrong in ("models:/shapes@nobody", "models:/nothing/1", "models:/m-nothing"):
        assert cli.run(["evaluate", wrong]) == 2
        assert "mergevq register" in capsys.readouterr().err


def loop_data(run: Run) -> str:
    return checkpoints.recipe_of(Path(run.newest_checkpoint())).data.path


def test_nothing_in_a_model_is_pickled(run: Run, homes: tuple[Path, Path]) -> None:
    store = Store.at(homes[0])
    if not store.client().search_registered_models("name = 'plain'"):
        registering.register("tokens", "plain", home=homes[0])
    fetched = fetch_model(store, "models:/plain/1", homes[0] / "models")
    assert {path.name for path in fetched.path.iterdir()} == {
        "config.json", "model.safetensors", "recipe.yaml", "origin.json",
    }  # fmt: skip
    assert fetched.step == 1


def test_a_model_holds_no_files_of_the_folder_it_was_registered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow takes a folder with these two for the model's own project and uploads them.
    monkeypatch.delenv("MLFLOW_UV_AUTO_DETECT", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("uv.lock").write_text("version = 1\n")
    Path("pyproject.toml").write_text("[project]\nname = 'theirs'\nversion = '1'\n")
    mergevq.save(mergevq.create("test_gr"), tmp_path / "tokenizer")
    models._write(tmp_path / "model" / "model", tmp_path / "tokenizer", {}, 16, "m-1")
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in (tmp_path / "model").rglob("*")}
    assert (tmp_path / "model" / "model" / "MLmodel").is_file()


@pytest.mark.parametrize(
    ("images", "params", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), {}, r"float32 .*uint8 \(B, 16, 16, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), {}, r"\(1, 8, 8, 3\)"),
        (
            np.zeros((1, 16, 16, 3), np.uint8),
            {"output": "logits"},
            "'logits' is unknown: use all, or some of",
        ),
        (np.zeros((1, 16, 16, 3), np.uint8), {"keep": 17}, "17"),
    ],
)
def test_a_model_says_what_it_takes(
    images: np.ndarray, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    mergevq.save(mergevq.create("test_gr"), tmp_path)
    with pytest.raises(InputError, match=message):
        ServedTokenizer(tmp_path).predict(images, params)


def test_a_generator_that_only_the_tracking_store_knows_is_measured_and_generates(
    small_generator: dict[str, Any],
    homes: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained, elsewhere = homes
    recipe = resolve(small_generator | {"steps": 1, "checkpoint_every": 1})
    run = Run("codes", trained, str(trained / "ray"))
    run.directory.mkdir(parents=True)
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    loop.train(recipe, loop.Worker(), LocalHost(run.directory))
    run.start(recipe, None).open().close("FINISHED")
    store = Store.at(trained)
    monkeypatch.setenv("MERGEVQ_HOME", str(elsewhere))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["evaluate", "codes", "--cfg", "2", "--num", "12", "--json", "report.json"]) == 0
    assert len(json.loads(Path("report.json").read_text())["rows"]) == 2
    origin = find_run(store, "codes")
    (again,) = [found for found in list_runs(store) if found.evaluates == origin.uid]
    assert again.has_curve, "in a run that is linked to the one that trained it"
    assert cli.run(["generate", "codes", "--out", "made", "--num", "4"]) == 0, capsys.readouterr().err
    assert list(Path("made").rglob("*.png"))


def test_a_tokenizer_that_only_the_tracking_store_knows_makes_codes(
    run: Run, homes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(homes[1]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Store.at(homes[0]).uri)
    assert cli.run(["tokenize", "tokens", str(tmp_path / "codes"), "--keep", "9", "--crops", "1"]) == 0


@pytest.fixture
def registered(run: Run, homes: tuple[Path, Path]) -> str:
    """The run as a registered model, by its name in URIs."""
    store = Store.at(homes[0])
    if not store.client().search_registered_models("name = 'everywhere'"):
        registering.register("tokens", "everywhere", home=homes[0], alias="champion")
    return "models:/everywhere@champion"


@pytest.mark.parametrize("kind", ["name", "id", "checkpoint", "model"])
def test_every_verb_takes_every_kind_of_name(
    kind: str,
    run: Run,
    registered: str,
    homes: tuple[Path, Path],
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Store.at(homes[0])
    home = homes[1] if kind == "id" else homes[0]
    name = {
        "name": "tokens",
        "id": find_run(store, "tokens").run_id[:10],
        "checkpoint": run.newest_checkpoint(),
        "model": registered,
    }[kind]
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save("image.png")
    for words in (
        ["reconstruct", name, "image.png", "--keep", "4", "--out", "reconstructed"],
        ["tokenize", name, "codes", "--keep", "9", "--crops", "1"],
        ["evaluate", name, "--keep", "9", "--suite", "reconstruction", "--no-tracking", "--out", "measured"],
        ["register", name, "--name", f"again-{kind}"],
        ["compare", name, "--out", "compared"],
    ):
        assert cli.run(words) == 0, (words, capsys.readouterr().err)
    assert json.loads(Path("measured/curve.json").read_text())["rows"][0]["keep"] == 9
    assert len(Path("compared/curves.csv").read_text().splitlines()) == 3, (
        "the run's own curve, at two kept counts"
    )
    tree = small_recipe | {"task": {"kind": "probe", "tokenizer": name}}
    resolved = resolve(tree, find_run=places_of_runs(home, lambda: store)).task
    assert isinstance(resolved, ProbeTask)
    weights = checkpoints.sha256(Path(run.newest_checkpoint()) / "model.safetensors")
    assert resolved.tokenizer_sha256 == find_tokenizer(resolved.tokenizer).sha256 == weights


def test_a_name_of_an_upstream_that_means_nothing_is_said_with_its_key(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tree = small_recipe | {"task": {"kind": "probe", "tokenizer": "nothing-of-that-name"}}
    store = Store.at(tmp_path)
    with pytest.raises(InputError, match=r"^task\.tokenizer: no run 'nothing-of-that-name' in "):
        resolve(tree, find_run=places_of_runs(tmp_path, lambda: store))
    path = str(tmp_path / "gone")
    assert places_of_runs(tmp_path, lambda: pytest.fail("asked"))(path) == path


def test_a_checkpoint_is_opened_without_its_resume_state(
    run: Run, homes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither read nor missed: it is several times the model."""
    place = tmp_path / Path(run.newest_checkpoint()).name
    shutil.copytree(run.newest_checkpoint(), place)
    (place / "resume.pt").unlink()
    monkeypatch.setenv("MERGEVQ_HOME", str(homes[1]))
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(place), "--keep", "9", "--no-tracking", "--no-cache", "--json", "curve.json"]
    assert cli.run(words) == 0
    assert json.loads(Path("curve.json").read_text())["rows"][0]["psnr"] > 0


@pytest.mark.parametrize("protocol", [{}, {"images": 5}])
def test_a_curve_whose_protocol_was_edited_away_is_one_line(
    run: Run,
    protocol: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = json.loads((run.directory / "curve-first" / "curve.json").read_text())
    Path("curve.json").write_text(json.dumps(tree | {"protocol": protocol}))
    assert cli.run(["compare", "curve.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "curve.json: its protocol lacks extractor, data_fingerprint" in line
    assert "evaluate it again" in line


@pytest.fixture
def probe_of_a_name(small_recipe: dict[str, Any], run: Run, homes: tuple[Path, Path], tmp_path: Path) -> Path:
    """A recipe file that names what it builds on as a person does who has just trained it."""
    path = tmp_path / "probe.yaml"
    path.write_text(
        yaml.safe_dump(small_recipe | {"name": "probe", "task": {"kind": "probe", "tokenizer": run.name}})
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plan", "doctor"])
def test_what_looks_ahead_finds_an_upstream_by_the_name_of_its_run(
    verb: str,
    probe_of_a_name: Path,
    homes: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(homes[0]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    status = cli.run([verb, str(probe_of_a_name)])
    said = capsys.readouterr().out
    assert status == 0, said
    assert ("memory" in said) if verb == "doctor" else ("measured on" in said)
    status = cli.run([verb, str(probe_of_a_name), "task.tokenizer=nothing"])
    captured = capsys.readouterr()
    assert status != 0
    assert "task.tokenizer: no run 'nothing' in " in captured.out + captured.err


def test_a_sweep_finds_the_upstream_of_every_choice_before_its_trials(
    small_recipe: dict[str, Any], run: Run, homes: tuple[Path, Path], tmp_path: Path
) -> None:
    task = {"kind": "generator", "preset": "test_mergear", "model": {"classes": 12}, "tokenizer": "other"}
    data = {"path": small_recipe["data"]["path"], "views": {"image_size": 16}}
    path = tmp_path / "generator.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"task": task, "data": data}))
    store = Store.at(homes[0])
    names = (run.name, find_run(store, run.name).run_id[:10])
    sweep = Sweep(
        name="upstream",
        question="Is one tokenizer the other?",
        recipe=str(path),
        space={"task.tokenizer": choice(*names), "seed": choice(0, 1)},
        search=Grid(),
        objectives=(sample_frechet(),),
    )
    sweep.check()
    pinned, first = sweep.pinned(places_of_runs(homes[0], lambda: store))
    assert len(pinned.pins) == 2
    weights = checkpoints.sha256(Path(run.newest_checkpoint()) / "model.safetensors")
    for params, seed in pinned.listed() or ():
        trial = resolve(pinned.recipe_of(params, seed=seed), pins=pinned.pins).generator
        assert (trial.tokenizer, trial.tokenizer_sha256) == (first.generator.tokenizer, weights)
    lacking = dataclasses.replace(sweep, space={**sweep.space, "task.tokenizer": choice(*names, "gone")})
    with pytest.raises(InputError, match=r"^sweep 'upstream' with .*=gone, .*task\.tokenizer: no run 'gone'"):
        lacking.pinned(places_of_runs(homes[0], lambda: store))
