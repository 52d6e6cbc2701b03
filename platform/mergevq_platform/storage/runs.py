"""A run: its name, the location of its checkpoints, and its local directory with the journal and the recipe."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.fs

from mergevq.config import flattened, to_tree
from mergevq.errors import InputError
from mergevq.hub import short_name
from mergevq_platform.recipe import Recipe
from mergevq_platform.storage import checkpoints, forks, naming
from mergevq_platform.storage.credentials import without_credentials
from mergevq_platform.tracking.recorder import RunStart, current_user
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity, read_identity
from mergevq_platform.tracking.store import Store


@dataclass(frozen=True)
class Run:
    """One training run.

    `storage/name` holds the checkpoints (any pyarrow filesystem); `directory` is local and holds journal and recipe.
    By default the two are one folder, `runs/ray/NAME`.
    """

    name: str
    home: Path
    storage: str

    @property
    def directory(self) -> Path:
        """The local directory of the run."""
        return self.home / "ray" / self.name

    @property
    def location(self) -> str:
        """The location of the run's checkpoints: a path or URI."""
        return checkpoints.inside(self.storage, self.name)

    @classmethod
    def new(cls, name: str, *, home: Path, storage: str | None = None) -> Run:
        """A run whose name will do and is not taken. Raises `InputError` otherwise, or if the storage cannot be written."""
        naming.check_name(name, "--name")
        run = cls(name=name, home=home, storage=_storage(storage, home))
        filesystem, path = checkpoints.open_storage(run.location)
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound or run.directory.exists():
            raise InputError(
                f"run '{name}' exists already in {run.storage}: choose another --name, or go on with --resume {name}"
            )
        local = (path.name for path in (home / "ray").glob("*"))
        alike = [other for other in (*run.siblings(), *local) if other.casefold() == name.casefold()]
        if alike:  # on another file system the two would be one
            raise InputError(
                f"run '{alike[0]}' exists already in {run.storage}, and '{name}' differs from it in case alone: "
                "choose another --name"
            )
        run._require_writable()
        return run

    @classmethod
    def find(cls, name: str, *, home: Path, storage: str | None = None) -> Run:
        """An existing run by name or by path. Raises `InputError` if there is none.

        A run whose checkpoints lie in its home is found there, whatever `storage` others go to.
        """
        given = Path(checkpoints.absolute(name)) if "/" in name else Path(name)
        if given.parent != Path() and (given / "recipe.yaml").is_file():
            name, storage = given.name, str(given.resolve().parent)
        run = cls(name=name, home=home, storage=_storage(storage, home))
        if checkpoints.listed(str(run.directory)) and not checkpoints.listed(run.location):
            run = replace(run, storage=_storage(None, home))
        if not run._exists("recipe.yaml"):
            raise InputError(
                f"no run '{name}' in {run.storage}: runs there: {', '.join(run.siblings()) or 'none'}"
            )
        return run

    def siblings(self) -> list[str]:
        """The names of the runs in this run's storage."""
        filesystem, path = checkpoints.open_storage(self.storage)
        listing = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        return sorted(i.base_name for i in listing if i.type == pyarrow.fs.FileType.Directory)

    def newest_checkpoint(self) -> str:
        """The location of the run's newest checkpoint. Raises `InputError` if it has none."""
        found = checkpoints.listed(self.location)
        if not found:
            raise InputError(f"run '{self.name}' has no checkpoint yet in {self.location}")
        return found[0]

    def read(self, file: str) -> str:
        """A text file of the run, local or from storage."""
        local = self.directory / file
        if local.is_file():
            return local.read_text()
        filesystem, path = checkpoints.open_storage(self.location)
        with filesystem.open_input_stream(f"{path}/{file}") as stream:
            return stream.read().decode()

    def publish(self, *, failed: bool = False) -> None:
        """Copy recipe and journal beside the checkpoints, where those lie elsewhere.

        After a run that `failed`, a storage that does not take them raises nothing: why the run failed is the news.
        """
        with contextlib.suppress(OSError) if failed else contextlib.nullcontext():
            self._publish()

    def _publish(self) -> None:
        filesystem, path = checkpoints.open_storage(self.location)
        if Path(path) == self.directory.resolve():
            return
        filesystem.create_dir(path)
        for file in self.directory.glob("*.*"):
            if file.is_file() and file.suffix != ".lock":
                pyarrow.fs.copy_files(str(file), f"{path}/{file.name}", destination_filesystem=filesystem)

    def fetch(self) -> None:
        """Bring recipe and journal of a run that another machine began, so that it goes on as the same MLflow run."""
        filesystem, path = checkpoints.open_storage(self.location)
        if Path(path) == self.directory.resolve():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("recipe.yaml", JOURNAL_NAME):
            there = filesystem.get_file_info(f"{path}/{name}").type == pyarrow.fs.FileType.File
            if there and not (self.directory / name).is_file():
                pyarrow.fs.copy_files(
                    f"{path}/{name}", str(self.directory / name), source_filesystem=filesystem
                )

    def start(
        self,
        recipe: Recipe,
        tracking_uri: str | None,
        *,
        fingerprint: str | None = None,
        kind: str = "training",
        parent: str | None = None,
    ) -> RunStart:
        """What the run's recorder is opened with: parameters, tags, data; `RunStart.open` opens (or begins) the journal.

        `fingerprint` is that of the training split; `parent` the uid of the sweep that the run is a trial of.
        """
        of_data, dataset = {}, None
        if fingerprint is not None:
            of_data = {"mergevq.data_fingerprint": fingerprint}
            source = recipe.data.path
            dataset = {"name": short_name(source), "digest": fingerprint[:36], "source": source}
        return RunStart(
            directory=self.directory,
            store=Store.at(self.home, tracking_uri),
            identity=RunIdentity(
                name=self.name, experiment=recipe.experiment, kind=kind, parent=parent, user=current_user()
            ),
            params=parameters(recipe),
            tags=tags(recipe, self) | of_data,
            dataset=dataset,
            recipe=self.directory / "recipe.yaml",
        )

    def _exists(self, file: str) -> bool:
        if (self.directory / file).is_file():
            return True
        filesystem, path = checkpoints.open_storage(self.location)
        return filesystem.get_file_info(f"{path}/{file}").type == pyarrow.fs.FileType.File

    def _require_writable(self) -> None:
        try:
            filesystem, path = checkpoints.open_storage(self.storage)
            filesystem.create_dir(path, recursive=True)
            probe = f"{path}/.mergevq-{self.name}"
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"writable")
            filesystem.delete_file(probe)
            self.directory.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.storage} ({error}): choose another --storage or MERGEVQ_HOME"
            ) from None


def _storage(given: str | None, home: Path) -> str:
    return checkpoints.absolute(given) if given else str((home / "ray").resolve())


def run_around(place: str, home: Path) -> Run | None:
    """The run of this home that a run directory or checkpoint directory belongs to."""
    path = Path(place).resolve()
    directory = path.parent if (path / checkpoints.ABOUT).is_file() else path
    inside = (directory / "recipe.yaml").is_file() and directory.parent == (home / "ray").resolve()
    return Run(directory.name, home, str(directory.parent)) if inside else None


def parameters(recipe: Recipe) -> dict[str, object]:
    """The flattened recipe for MLflow, with what the task says beside it."""
    return flattened(to_tree(recipe)) | recipe.task.parameters()


def tags(recipe: Recipe, run: Run) -> dict[str, str]:
    """MLflow tags of a run: kind, variant, commit, location of its checkpoints, trunk."""
    found = {
        "mergevq.kind": recipe.task.kind,
        "mergevq.run": run.name,
        "mergevq.checkpoints": without_credentials(run.location),
        "mlflow.note.content": recipe.description,
    }
    found |= recipe.task.tags()
    if recipe.fork is not None:
        found["mergevq.trunk"] = forks.name_of(recipe.fork)
        found["mergevq.trunk_checkpoint"] = without_credentials(recipe.fork.run)
        journal = Path(recipe.fork.run).parent / JOURNAL_NAME
        if journal.is_file():
            found["mergevq.trunk_run"] = read_identity(journal).uid
    commit = git_commit()
    if commit:
        found["mlflow.source.git.commit"] = commit
    return found


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, '+' appended if it has changes; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        if commit.returncode:
            return None
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
