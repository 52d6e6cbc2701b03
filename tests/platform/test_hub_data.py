"""Image sets of the Hugging Face Hub: pinned to a commit, fetched once, and read as any other folder is."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import image_files
from hub_server import Hub
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq_platform import cli, data, recipe
from mergevq_platform.data import hub as hub_data
from mergevq_platform.data.hub import is_at_hand
from mergevq_platform.data.image_sets import open_images
from mergevq_platform.operations.doctor import checks
from mergevq_platform.operations.doctor.node import NodeQuery, report
from mergevq_platform.storage import hub as storage_hub

SHAPES = "hf://datasets/me/shapes"


@pytest.fixture(autouse=True)
def _nothing_fetched() -> None:
    hub_data.fetch_dataset.cache_clear()


@pytest.fixture
def commit(hub: Hub, image_set: Path) -> str:
    """The commit of the shapes on the Hub."""
    return hub.upload(image_set, "me/shapes", "dataset")


def again() -> None:
    """What a new process knows: the cache on disk alone."""
    hub_data.fetch_dataset.cache_clear()


def test_a_set_of_the_hub_is_the_set_that_was_uploaded(
    hub: Hub, commit: str, image_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = data.open_dataset(SHAPES, "val"), data.open_dataset(image_set, "val")
    assert there.fingerprint == here.fingerprint
    assert there.read([3])[0] == here.read([3])[0]
    said = capsys.readouterr().err.splitlines()
    files = len(list(image_set.iterdir())) + 1
    assert said[0].startswith(f"{SHAPES}@{commit}: fetching {files} of {files} files, ")
    assert said[-1].startswith(f"{SHAPES}@{commit}: fetched in ")


def test_a_commit_is_fetched_once_and_then_read_without_a_request(hub: Hub, commit: str) -> None:
    pinned = storage_hub.pinned(SHAPES, "dataset")
    assert pinned == f"{SHAPES}@{commit}"
    assert not is_at_hand(pinned)
    data.open_dataset(pinned, "train")
    again()
    hub.requests.clear()
    assert is_at_hand(pinned)
    assert data.open_dataset(pinned, "train").rows == 192
    assert not hub.requests


def test_what_a_fetch_that_was_cut_off_left_out_is_fetched_before_anything_is_read(
    hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"{SHAPES}@{commit}"
    folder = Path(hub_data.local_folder(pinned))
    lost = next(folder.glob("train-*.parquet"))
    lost.unlink()
    again()
    assert not is_at_hand(pinned)
    assert data.open_dataset(pinned, "train").rows == 192
    lost.unlink()
    again()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="is not whole in this machine's cache, and HF_HUB_OFFLINE is set"):
        data.open_dataset(pinned, "train")


def test_one_file_of_a_commit_is_not_taken_for_the_set(hub: Hub, commit: str) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download("me/shapes", "manifest.json", repo_type="dataset", revision=commit)
    assert not is_at_hand(f"{SHAPES}@{commit}")
    assert data.open_dataset(f"{SHAPES}@{commit}", "train").rows == 192


def test_a_recipe_is_resolved_to_the_commit_and_reads_the_same_after_the_set_has_moved_on(
    hub: Hub, commit: str, small_recipe: dict[str, Any]
) -> None:
    small_recipe["data"]["path"] = SHAPES
    resolved = recipe.resolve(small_recipe)
    assert resolved.data.path == f"{SHAPES}@{commit}"
    before = data.open_dataset(resolved.data.path, "train").fingerprint
    hub.repository("me/shapes", "dataset").commit({"manifest.json": b"{}"})
    again()
    assert recipe.resolve(to_tree(resolved)) == resolved
    assert data.open_dataset(resolved.data.path, "train").fingerprint == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "hf://me/tok",
            r"data\.path: 'hf://me/tok' names a model, and this takes a data set: write hf://datasets/",
        ),
        (
            "hf://datasets/me/none",
            r"data\.path: hf://datasets/me/none: there is no such repository on http://127",
        ),
        (
            f"{SHAPES}@v9",
            r"data\.path: hf://datasets/me/shapes@v9: hf://datasets/me/shapes has no revision 'v9'",
        ),
    ],
)
def test_a_recipe_with_a_wrong_address_is_refused_by_its_key(
    hub: Hub, commit: str, small_recipe: dict[str, Any], path: str, message: str
) -> None:
    small_recipe["data"]["path"] = path
    with pytest.raises(InputError, match=message):
        recipe.resolve(small_recipe)


def test_weights_of_a_recipe_are_files_not_addresses(hub: Hub, small_recipe: dict[str, Any]) -> None:
    small_recipe["task"]["initial_weights"] = "hf://timm/vit"
    with pytest.raises(
        InputError, match=r"task\.initial_weights: 'hf://timm/vit' is on the Hub, .* a file of weights"
    ):
        recipe.resolve(small_recipe)


def test_a_gated_set_names_the_page_where_access_is_asked_for(hub: Hub, commit: str) -> None:
    hub.repository("me/shapes", "dataset").gated = True
    with pytest.raises(
        InputError, match=rf"is gated: ask for access at {hub.url}/datasets/me/shapes, then log in"
    ):
        data.open_dataset(SHAPES, "train")


def test_a_folder_is_fetched_alone_and_one_that_is_not_there_is_named(
    hub: Hub, image_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_set, tmp_path / "both" / "small")
    (tmp_path / "both" / "large").mkdir()
    (tmp_path / "both" / "large" / "x.parquet").write_bytes(b"not read")
    hub.upload(tmp_path / "both", "me/both", "dataset")
    assert data.open_dataset("hf://datasets/me/both/small", "train").rows == 192
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path and "large" in path]
    with pytest.raises(InputError, match="hf://datasets/me/both has no folder 'huge' at this commit"):
        data.open_dataset("hf://datasets/me/both/huge", "train")


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    with pytest.raises(
        InputError, match=r"kB are to be fetched, and .* has 100 bytes free: set HF_HOME to a larger disk"
    ):
        data.open_dataset(SHAPES, "train")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize("kind", ["folders", "tar"])
def test_image_files_and_archives_of_the_hub_are_understood_and_packed(
    hub: Hub, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = image_files.images("train/cat", "train/dog", each=3)
    if kind == "tar":
        files = {"train.tar": image_files.tar(files)}
    commit = hub.upload(image_files.tree(tmp_path / "files", files), "me/pets", "dataset")
    assert cli.run(["data", "info", "hf://datasets/me/pets"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"hf://datasets/me/pets@{commit}: not packed yet")
    assert "next      mergevq data pack hf://datasets/me/pets@" in said
    assert cli.run(["data", "pack", "hf://datasets/me/pets", str(tmp_path / "packed"), "--serial"]) == 0
    packed = data.open_dataset(tmp_path / "packed", "train")
    assert (packed.rows, packed.classes) == (6, ("cat", "dog"))
    assert f"hf://datasets/me/pets@{commit}" in (tmp_path / "packed" / "manifest.json").read_text()


def test_images_of_the_hub_can_be_compared_with_others(hub: Hub, tmp_path: Path) -> None:
    hub.upload(image_files.tree(tmp_path / "files", image_files.images("", each=3)), "me/files", "dataset")
    assert open_images("hf://datasets/me/files", 2, size=8).images == 3


def test_looking_at_a_recipe_fetches_no_images(hub: Hub, commit: str, tmp_path: Path) -> None:
    """The doctor and small questions read what is there; gigabytes are for training and evaluation."""
    from mergevq_platform.data.parquet.directory import stated_background

    assert stated_background(SHAPES) is None
    found = report(
        NodeQuery(storage=str(tmp_path), home=str(tmp_path), token="t", data=SHAPES, splits=("train",)), "a"
    )
    assert found.unfetched
    (finding,) = checks.data([found], SHAPES)
    assert str(finding).startswith(
        f"warn  data: {SHAPES} is not in the Hub's cache of a yet: a training fetches it there"
    )
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_runs_are_not_stored_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    from mergevq_platform.storage.runs import Run

    with pytest.raises(
        InputError, match=r"storage 'hf://me/tok/x' is on the Hub, which holds no runs: .* `mergevq push`"
    ):
        Run.new("x", home=tmp_path, storage="hf://me/tok")
    assert not hub.requests
