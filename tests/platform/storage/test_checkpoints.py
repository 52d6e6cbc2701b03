"""Keeping checkpoints on storage that fails: whole or absent, and nothing written where storage only used to be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mergevq.errors import InputError
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.checkpoints import writing
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.trial import stored_checkpoint


def written(folder: Path, step: int, content: bytes = b"weights") -> Path:
    directory = folder / checkpoints.directory_name(step)
    directory.mkdir(parents=True)
    (directory / "resume.pt").write_bytes(content)
    digest = {"resume.pt": checkpoints.sha256(directory / "resume.pt")}
    (directory / "checkpoint.json").write_text(json.dumps({"step": step, "sha256": digest}))
    return directory


def with_model(directory: Path) -> Path:
    """The checkpoint with a model beside what training goes on from."""
    (directory / "model.safetensors").write_bytes(b"model")
    about = json.loads((directory / "checkpoint.json").read_text())
    about["sha256"]["model.safetensors"] = checkpoints.sha256(directory / "model.safetensors")
    (directory / "checkpoint.json").write_text(json.dumps(about))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "recipe.yaml").write_text("name: run\n")
    return directory


def names(run: Path) -> list[int]:
    return [checkpoints.step_of(place) for place in checkpoints.listed(str(run))]


def test_the_newest_are_kept_and_the_one_just_written_in_any_case(run: Path, tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoints.keep(written(tmp_path / "local", step), str(run), most=2)
    assert names(run) == [12, 8]
    # Of a run that went back to an earlier checkpoint: later ones were not usable.
    checkpoints.keep(written(tmp_path / "local", 6), str(run), most=1)
    assert 6 in names(run)
    with checkpoints.newest(str(run / checkpoints.directory_name(6))) as found:
        assert (found / "resume.pt").read_bytes() == b"weights"


def test_a_checkpoint_written_again_replaces_the_damaged_one(run: Path, tmp_path: Path) -> None:
    checkpoints.keep(written(tmp_path / "local", 4), str(run), most=2)
    (run / checkpoints.directory_name(4) / "resume.pt").write_bytes(b"torn")
    checkpoints.keep(tmp_path / "local" / checkpoints.directory_name(4), str(run), most=2)
    checkpoints.verify(run / checkpoints.directory_name(4))


def test_a_copy_that_fails_leaves_nothing_that_looks_like_a_checkpoint(run: Path, tmp_path: Path) -> None:
    checkpoints.keep(written(tmp_path / "local", 4), str(run), most=2)
    target = run / checkpoints.directory_name(8)
    (target / "resume.pt").mkdir(parents=True)  # a directory where the file must go
    with pytest.raises(OSError, match=r"resume\.pt"):
        checkpoints.keep(written(tmp_path / "local", 8), str(run), most=2)
    assert names(run) == [4]
    assert not target.exists()
    checkpoints.keep(tmp_path / "local" / checkpoints.directory_name(8), str(run), most=2)
    assert names(run) == [8, 4]


def test_a_trials_last_checkpoint_that_a_kill_cuts_short_is_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    copied, upload = [], writing._upload

    def killed(source: Path, filesystem: Any, target: str) -> None:
        if copied:
            raise Killed
        copied.append(source.name)
        upload(source, filesystem, target)

    trial, checkpoint = Run(run.name, tmp_path / "home", str(tmp_path)), written(tmp_path / "local", 4)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_upload", killed)
        with pytest.raises(Killed):
            stored_checkpoint(trial, checkpoint)
    assert (run / checkpoint.name / copied[0]).is_file()
    assert names(run) == []
    stored_checkpoint(trial, checkpoint)
    assert names(run) == [4]
    stored_checkpoint(trial, run / checkpoint.name)  # where it was written already
    checkpoints.verify(run / checkpoint.name)


def test_an_unmounted_storage_is_not_taken_for_an_empty_one(run: Path, tmp_path: Path) -> None:
    local = written(tmp_path / "local", 4)
    run.rename(tmp_path / "elsewhere")
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="no such run there any more"):
        checkpoints.keep(local, str(run), most=2)
    assert not list(run.iterdir())


def test_a_torn_description_is_a_damaged_checkpoint(run: Path, tmp_path: Path) -> None:
    for step in (4, 8):
        checkpoints.keep(written(tmp_path / "local", step), str(run), most=2)
    (run / checkpoints.directory_name(8) / "checkpoint.json").write_text('{"step": 8, "sha')
    said: list[str] = []
    with checkpoints.newest(str(run), say=said.append) as found:
        assert checkpoints.step_of(str(found)) == 4
    assert len(said) == 1
    assert "checkpoint.json is corrupt" in said[0]
    assert said[0].endswith(f"falling back to {found}")
    (run / checkpoints.directory_name(4) / "resume.pt").unlink()
    with pytest.raises(InputError, match="no checkpoint in"), checkpoints.newest(str(run)):
        pass


def test_what_is_not_read_is_not_checked_and_what_is_read_is(run: Path, tmp_path: Path) -> None:
    for step in (4, 8):
        checkpoints.keep(with_model(written(tmp_path / "local", step)), str(run), most=2)
    newest = run / checkpoints.directory_name(8)
    (newest / "resume.pt").write_bytes(b"torn")
    with checkpoints.newest(str(run), files=checkpoints.MODEL) as found:
        assert found == newest
    said: list[str] = []
    with checkpoints.newest(str(run), say=said.append) as found:
        assert checkpoints.step_of(str(found)) == 4
    assert "resume.pt is corrupt" in said[0]
    (newest / "model.safetensors").write_bytes(b"torn")
    with checkpoints.newest(str(run), files=checkpoints.RECIPE) as found:
        assert found == newest
    with checkpoints.weights(str(run)) as found:
        assert checkpoints.step_of(str(found)) == 4


def test_a_checkpoint_is_found_by_its_step_until_it_is_dropped(run: Path, tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoints.keep(written(tmp_path / "local", step), str(run), most=2)
    assert checkpoints.at_step(str(run), 8) == str(run / checkpoints.directory_name(8))
    with pytest.raises(InputError, match="no checkpoint of step 4 any more"):
        checkpoints.at_step(str(run), 4)
    renamed = (run / checkpoints.directory_name(8)).rename(tmp_path / "exported")
    assert checkpoints.at_step(str(renamed), 8) == str(renamed)


def test_a_run_is_published_in_a_storage_directory_that_is_new(tmp_path: Path) -> None:
    run = Run("new", tmp_path / "home", str(tmp_path / "shared"))
    run.directory.mkdir(parents=True)
    (run.directory / "recipe.yaml").write_text("name: new\n")
    run.publish()
    assert (tmp_path / "shared" / "new" / "recipe.yaml").read_text() == "name: new\n"
    checkpoints.keep(written(tmp_path / "local", 4), run.location, most=2)
    assert names(tmp_path / "shared" / "new") == [4]


def test_object_storage_keeps_and_replaces_as_a_directory_does(tmp_path: Path) -> None:
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    there = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    run = f"s3://key:secret@bucket/run?{there}"
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(run)
        with pytest.raises(FileNotFoundError):
            checkpoints.keep(written(tmp_path / "local", 4), run, most=2)
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/recipe.yaml") as stream:
            stream.write(b"name: run\n")
        checkpoints.keep(tmp_path / "local" / checkpoints.directory_name(4), run, most=2)
        for step in (8, 12, 8):
            local = tmp_path / "local" / checkpoints.directory_name(step)
            checkpoints.keep(local if local.exists() else written(tmp_path / "local", step), run, most=2)
        assert [checkpoints.step_of(place) for place in checkpoints.listed(run)] == [12, 8]
        with checkpoints.newest(run) as found:
            assert json.loads((found / "checkpoint.json").read_text())["step"] == 12
            assert (found / "resume.pt").read_bytes() == b"weights"
        # Who reads the model alone does not wait for what only training needs.
        checkpoints.keep(with_model(written(tmp_path / "local", 16)), run, most=2)
        for files, fetched in (
            (checkpoints.RECIPE, set()),
            (checkpoints.MODEL, {"model.safetensors"}),
            (checkpoints.RESUME, {"resume.pt"}),
        ):
            with checkpoints.newest(run, files=files) as found:
                assert {path.name for path in found.iterdir()} == {"checkpoint.json", *fetched}
        with checkpoints.weights(run) as found:
            assert (found / "model.safetensors").read_bytes() == b"model"
            assert not (found / "resume.pt").exists()
    finally:
        server.stop()
