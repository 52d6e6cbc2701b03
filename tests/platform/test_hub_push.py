"""Pushing models to the Hugging Face Hub, and using them from there: the same weights, recipe and numbers, and a card that tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import hub_server
import mergevq
from hub_server import Hub
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq_platform import cli, loop
from mergevq_platform.data import hub as hub_data
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.operations.publishing.card import BIBTEX
from mergevq_platform.operations.publishing.model_index import model_index
from mergevq_platform.operations.publishing.push import push
from mergevq_platform.operations.submission.packages import ClusterInfo
from mergevq_platform.operations.submission.submit import environment
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import places_of_runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tracking.store import Store

ROOT = Path(__file__).parents[2]
TARGET = "hf://me/tok"


@pytest.fixture(autouse=True)
def _a_new_process() -> None:
    hub_data.fetch_dataset.cache_clear()


def trained(tree: dict[str, Any], home: Path, name: str) -> Run:
    """A run of this home after two steps, with its checkpoint and recipe as a training leaves them."""
    recipe = resolve(
        tree | {"name": name, "steps": 2, "checkpoint_every": 2},
        find_run=places_of_runs(home, lambda: Store.at(home, None)),
    )
    run = Run.new(name, home=home)
    run.directory.mkdir(parents=True)
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    loop.train(recipe, Worker(), LocalHost(run.directory))
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pushing")


@pytest.fixture
def run(home: Path, small_recipe: dict[str, Any]) -> Run:
    """A tokenizer's run with an evaluation of it, made once."""
    if not (home / "ray" / "tok").is_dir():
        made = trained(small_recipe | {"description": "A small tokenizer of shapes."}, home, "tok")
        curve(made).save(made.directory / "curve" / "curve.json")
        Image.new("RGB", (8, 8)).save(made.directory / "curve" / "tradeoff.png")
        Image.new("RGB", (8, 8)).save(made.directory / "curve" / "reconstructions.png")
    return Run.find("tok", home=home)


def curve(run: Run, *, step: int = 2, keeps: tuple[int, ...] = (4, 9, 16), caveat: str = "") -> Curve:
    rows = [
        {
            "keep": float(k),
            "merge_ratio": 1 - k / 16,
            "rfid": 90.0 / k,
            "psnr": 10.0 + k,
            "probe_top1_cls": 50.0 + k,
        }
        for k in keeps
    ]
    protocol = {
        "frechet_key": "rfid",
        "keys": {},
        "extractor": {"name": "inception", "description": "Inception of the FID's authors"},
        "images": 64,
        "split": "val",
        "data": str(run.home / "data" / "shapes"),
        "data_fingerprint": "f" * 64,
        "ema": True,
        "step": step,
        "checkpoint": run.location + "/checkpoint_000000002",
        "probe": {"kind": "logistic regression", "train_images": 192},
        "majority_top1": 12.5,
        "caveat": caveat,
    }
    return Curve(run=run.name, rows=rows, protocol=protocol)


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    return hub_server.TOKEN


def files_of(hub: Hub, name: str = "me/tok", revision: str = "main") -> dict[str, bytes]:
    repository = hub.repository(name)
    return repository.commits[repository.refs[revision]]


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_a_pushed_tokenizer_has_the_weights_the_recipe_the_numbers_and_the_figure(
    hub: Hub,
    token: str,
    run: Run,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    assert cli.run(["push", "tok", TARGET, "--message", "First weights"]) == 0
    said = capsys.readouterr()
    files = files_of(hub)
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "recipe.yaml", "checkpoint.json", "curve.json",
        "tradeoff.png",
    }, "and no image of the data"  # fmt: skip
    checkpoint = Path(run.newest_checkpoint())
    for name in ("config.json", "model.safetensors"):
        assert files[name] == (checkpoint / name).read_bytes()
    commit = hub.repository("me/tok").refs["main"]
    assert hub.repository("me/tok").messages[commit] == "First weights"
    assert f"pushed: {TARGET}@{commit}" in said.out
    assert f'tokenizer = mergevq.load("{TARGET}")' in said.out
    everything = b"".join(files.values()).decode("latin-1") + said.out + said.err
    assert token not in everything
    assert str(home) not in everything, "places of this machine stay here"


def test_the_card_tells_numbers_with_their_protocol_and_how_to_load(
    hub: Hub, token: str, run: Run, home: Path
) -> None:
    push("tok", TARGET, home=home)
    card = files_of(hub)["README.md"].decode()
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "mergevq"
    assert {"mergevq", "image-tokenizer", "arxiv:2504.00999"} <= set(front["tags"])
    assert curve(run).markdown() in card
    for sentence in curve(run).verdict():
        assert sentence in card
    for part in (
        "A small tokenizer of shapes.",
        "](tradeoff.png)",
        "images of 16 px",
        "after 2 steps",
        BIBTEX,
        "Licence",
    ):
        assert part in card
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    name, results = model_index_to_eval_results(ModelCard(card).data.to_dict()["model-index"])
    assert name == "tok"
    measured = {
        (result.metric_type, result.metric_args["kept_tokens"]): result.metric_value for result in results
    }
    assert measured[("fid", 4)] == 22.5
    assert measured[("psnr", 16)] == 26.0
    assert measured[("accuracy", 9)] == 59.0
    assert {result.dataset_name for result in results} == {"shapes"}


def test_only_numbers_that_have_earned_their_names_are_in_the_hubs_tables(run: Run) -> None:
    seen = curve(run, caveat="the stand-in teacher has seen the labels")
    (entry,) = model_index("tok", seen)
    assert {metric["type"] for result in entry["results"] for metric in result["metrics"]} == {"fid", "psnr"}
    other = Curve("tok", [{"keep": 4.0, "rfd_random_v1": 1.0}], seen.protocol)
    assert model_index("tok", other) == []


def test_the_lines_of_the_card_load_what_was_pushed(hub: Hub, token: str, run: Run, home: Path) -> None:
    pushed = push("tok", TARGET, home=home)
    (lines,) = re.findall(r"```python\n(.*?)```", files_of(hub)["README.md"].decode(), re.DOTALL)
    assert lines.strip() == pushed.loading
    names: dict[str, Any] = {"images": torch.rand(2, 3, 16, 16) * 2 - 1}
    images = names["images"]
    exec(lines, names)
    here = mergevq.load(run.newest_checkpoint())
    assert torch.equal(names["images"], here.decode(here.encode(images, keep=9)))


def test_every_verb_takes_a_pushed_model_and_its_recipe(
    hub: Hub, token: str, run: Run, home: Path, image_set: Path, small_recipe: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub.upload(image_set, "me/shapes", "dataset")
    push("tok", TARGET, home=home)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save("image.png")
    shapes = "hf://datasets/me/shapes"
    for words in (
        ["reconstruct", TARGET, "image.png", "--keep", "4", "--out", "reconstructed"],
        ["tokenize", TARGET, "codes", "--data", shapes, "--keep", "9", "--crops", "1"],
        ["compare", TARGET, "--out", "compared"],
        [
            "evaluate",
            TARGET,
            "--data",
            shapes,
            "--keep",
            "9",
            "--suite",
            "reconstruction",
            "--out",
            "measured",
        ],
    ):
        assert cli.run(words) == 0, (words, capsys.readouterr().err)
    protocol = json.loads(Path("measured/curve.json").read_text())["protocol"]
    dataset, model = (
        hub.repository("me/shapes", "dataset").refs["main"],
        hub.repository("me/tok").refs["main"],
    )
    assert (protocol["data"], protocol["checkpoint"]) == (f"{shapes}@{dataset}", f"{TARGET}@{model}")
    assert protocol["step"] == 2

    tree = small_recipe | {"task": {"kind": "probe", "tokenizer": TARGET}}
    resolved = resolve(tree, find_run=places_of_runs(tmp_path, lambda: Store.at(tmp_path, None)))
    assert resolved.task.tokenizer == f"{TARGET}@{model}"
    assert resolved.task.tokenizer_sha256 == checkpoints.sha256(
        Path(run.newest_checkpoint()) / "model.safetensors"
    )
    hub.repository("me/tok").commit({"model.safetensors": b"other weights"})
    hub.requests.clear()
    assert resolve(to_tree(resolved)) == resolved
    resolved.task.open_tokenizer()
    assert not hub.requests, "a resumed run loads the very same weights, from the cache"


def test_a_generator_goes_with_its_tokenizer_and_its_lines_make_images(
    hub: Hub, token: str, run: Run, home: Path, small_generator: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trained(small_generator, home, "gen")
    pushed = push("gen", "hf://me/gen", home=home)
    files = files_of(hub, "me/gen")
    assert {"tokenizer/config.json", "tokenizer/model.safetensors", "config.json", "recipe.yaml"} <= set(
        files
    )
    recipe = yaml.safe_load(files["recipe.yaml"])
    address, _, folder = recipe["task"]["tokenizer"].rpartition("/")
    assert folder == "tokenizer"
    assert address.partition("@")[2] in hub.repository("me/gen").commits, (
        "of a commit: another push does not move it"
    )
    names: dict[str, Any] = {}
    exec(pushed.loading, names)
    assert names["images"].shape == (8, 3, 16, 16)
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path))
    words = ["generate", "hf://me/gen", "--out", str(tmp_path / "made"), "--num", "4"]
    assert cli.run(words) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "made" / "pictures").rglob("*.png"))) == 4


def test_a_generator_on_a_tokenizer_of_the_hub_names_it_as_its_base(
    hub: Hub, token: str, run: Run, home: Path, small_generator: dict[str, Any], tokenizer_directory: Path
) -> None:
    commit = hub.upload(tokenizer_directory, "me/base")
    task = small_generator["task"] | {"tokenizer": "hf://me/base"}
    trained(small_generator | {"task": task}, home, "gen-on-hub")
    push("gen-on-hub", "hf://me/gen", home=home)
    files = files_of(hub, "me/gen")
    assert "tokenizer/config.json" not in files
    assert yaml.safe_load(files["recipe.yaml"])["task"]["tokenizer"] == f"hf://me/base@{commit}"
    assert front_matter(files["README.md"].decode())["base_model"] == "me/base"


def test_a_training_may_start_from_a_tokenizer_of_the_hub(
    hub: Hub, token: str, run: Run, home: Path, small_recipe: dict[str, Any]
) -> None:
    commit = push("tok", TARGET, home=home).pinned
    task = {"kind": "tokenizer", "initial_run": TARGET, "keep": {"kind": "list", "counts": [9]}}
    made = trained(small_recipe | {"task": task}, home, "tuned")
    recipe = checkpoints.recipe_of(Path(made.newest_checkpoint()))
    assert recipe.tokenizer.initial_run == commit
    assert recipe.tokenizer.model == checkpoints.recipe_of(Path(run.newest_checkpoint())).tokenizer.model
    push("tuned", "hf://me/tuned", home=home)
    files = files_of(hub, "me/tuned")
    assert front_matter(files["README.md"].decode())["base_model"] == "me/tok"
    assert yaml.safe_load(files["recipe.yaml"])["task"]["initial_run"] == commit


def test_the_numbers_are_of_the_pushed_step_and_the_fullest(
    hub: Hub, token: str, run: Run, home: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    wide, other = run.directory / "curve-20260101-000000", tmp_path / "other"
    curve(run, keeps=(4, 8, 9, 16)).save(wide / "curve.json")
    try:
        push("tok", TARGET, home=home, say=said.append)
        assert len(json.loads(files_of(hub)["curve.json"])["rows"]) == 4
        curve(run, step=1, keeps=(4, 6, 8, 9, 16)).save(other / "curve.json")
        with pytest.raises(InputError, match="measured another checkpoint than tok, step 2: evaluate that"):
            push("tok", TARGET, home=home, evaluation=other)
    finally:
        (wide / "curve.json").unlink()
        wide.rmdir()
    assert not said


def test_a_tokenizer_without_evaluation_and_recipe_has_a_card_that_says_so(
    hub: Hub, token: str, home: Path, tokenizer_directory: Path
) -> None:
    said: list[str] = []
    push(str(tokenizer_directory), TARGET, home=home, say=said.append)
    assert "the card has no numbers" in said[0]
    files = files_of(hub)
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    card = files["README.md"].decode()
    assert "Not evaluated." in card
    assert "No recipe is known" in card
    assert "model-index" not in front_matter(card)
    mergevq.load(TARGET)


def test_a_branch_is_made_and_main_stays(hub: Hub, token: str, run: Run, home: Path) -> None:
    pushed = push("tok", TARGET, home=home, revision="v2")
    assert set(files_of(hub)) == {".gitattributes"}
    assert pushed.address == f"{TARGET}@v2"
    assert mergevq.load(pushed.address).config == mergevq.load(pushed.pinned).config


def test_a_private_repository_is_private_and_a_public_one_is_not_taken_for_it(
    hub: Hub, token: str, run: Run, home: Path
) -> None:
    push("tok", TARGET, home=home, private=True)
    assert hub.repository("me/tok").private
    hub.repository("me/public").commit({".gitattributes": b""})
    with pytest.raises(
        InputError, match="hf://me/public is there already, and public: make it private on its page"
    ):
        push("tok", "hf://me/public", home=home, private=True)
    assert set(files_of(hub, "me/public")) == {".gitattributes"}


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("me/tok", {}, None),
        ("hf://datasets/me/tok", {}, "names a data set, and this takes a model"),
        ("hf://me/tok@v1", {}, "leave @v1 out and give --revision v1"),
        ("hf://me/tok/folder", {}, "a model is pushed to a repository of its own: write hf://me/tok"),
        (
            "hf://someone/tok",
            {},
            r"refuses the token in use \(status 403\): log in .*, with rights to this repository",
        ),
    ],
)
def test_a_target_that_cannot_be_is_one_line(
    hub: Hub, token: str, run: Run, home: Path, target: str, options: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert push("tok", target, home=home).address == TARGET, "the scheme may be left out"
        return
    with pytest.raises(InputError, match=message) as refusal:
        push("tok", target, home=home, **options)
    assert "\n" not in str(refusal.value)
    assert token not in str(refusal.value)


def test_without_a_token_nothing_is_asked(hub: Hub, run: Run, home: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"hf://me/tok: pushing needs a token .*: log in with `hf auth login`, or set HF_TOKEN",
    ):
        push("tok", TARGET, home=home)
    assert not hub.requests


def test_what_a_push_meets_on_the_way_is_one_line(
    hub: Hub, token: str, run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"format": "mergevq probe 1"}')
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="holds 'mergevq probe 1': tokenizers and generators are pushed"):
        push(str(tmp_path / "other"), TARGET, home=home)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(f'Invalid metadata in README.md.\n- "license" must be one of {token}')

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "_validate_yaml", refuse)
        with pytest.raises(
            InputError, match=r"the Hub does not take the files \(Invalid metadata in README"
        ) as refusal:
            push("tok", TARGET, home=home)
        assert token not in str(refusal.value)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            InputError, match="hf://me/tok cannot be pushed, and HF_HUB_OFFLINE is set: unset it"
        ):
            push("tok", TARGET, home=home)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(
            InputError, match=r"hf://me/tok cannot be pushed, and http://127\.0\.0\.1:9 cannot be reached"
        ):
            push("tok", TARGET, home=home)


def test_a_token_does_not_travel_with_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    info = ClusterInfo(python="3.11", versions={}, holds_mergevq=True, environment={}, tracking=False)
    found = environment(info, home="/shared", verb="train", cluster_is_local=False)
    assert "MERGEVQ_HOME" in found
    assert not [name for name in found if name.startswith("HF_")]


def test_the_citation_is_that_of_the_project() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]
    assert cited["title"] in BIBTEX
    for author in cited["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in " ".join(BIBTEX.split())
    assert f"{cited['start']}--{cited['end']}" in BIBTEX
