"""The stored state of a sweep, by which it resumes: its definition, and its folders."""

from __future__ import annotations

import json
import secrets
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cloudpickle

from mergevq.errors import InputError
from mergevq.files import whole_file, write_whole
from mergevq_platform.evaluation.worker import Device
from mergevq_platform.storage import naming
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.definition import Sweep, Tpe
from mergevq_platform.sweeps.objectives import UntrainedPoint
from mergevq_platform.sweeps.renamed import know_former_names
from mergevq_platform.tracking.records import new_uid

DEFINITION_FILE = "sweep.pkl"
SETTINGS_FILE = "place.json"


@dataclass(frozen=True)
class SweepSettings:
    """Folders of a sweep and its trials, and what was resolved when it began; travels to the trials."""

    name: str  # of the sweep
    home: str
    storage: str | None
    tracking_uri: str | None
    uid: str  # of the sweep's MLflow run
    device: Device
    reference: UntrainedPoint | None = None
    optuna: str | None = None  # its version, where it proposes the trials
    yields: bool = False  # its trials, to urgent jobs; a sweep of an earlier version cannot

    def run(self, trial: str) -> Run:
        """The run of a trial (or of the sweep itself)."""
        home = Path(self.home)
        return Run(name=trial, home=home, storage=self.storage or str((home / "ray").resolve()))

    def save(self, definition: Sweep) -> None:
        """Store both in the sweep's own directory."""
        directory = self.run(self.name).directory
        with whole_file(directory / DEFINITION_FILE) as temporary:
            temporary.write_bytes(cloudpickle.dumps(definition))
        write_whole(directory / SETTINGS_FILE, json.dumps(asdict(self), indent=1))


def begun(
    definition: Sweep, home: Path, *, name: str | None, storage: str | None, tracking_uri: str | None
) -> SweepSettings:
    """The settings of a new sweep; nothing is stored yet. Raises `InputError` for a name that is taken or cannot be."""
    if name is not None:
        naming.check_name(name, "--name", longest=naming.LONGEST - naming.ADDED)
    unique = name or naming.derived(
        definition.name, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )
    return SweepSettings(
        name=Run.new(unique, home=home, storage=storage).name,
        home=str(home),
        storage=storage,
        tracking_uri=tracking_uri,
        uid=new_uid(),
        device="cpu",
        optuna=optuna_version(definition),
        yields=definition.first_recipe().cluster.yields is not False,
    )


def resumed(name: str, home: Path, *, tracking_uri: str | None) -> tuple[Sweep, SweepSettings]:
    """A stored sweep, with a warning where another Optuna than its own would go on proposing its trials."""
    directory = directory_of(name, home)
    if not (directory / SETTINGS_FILE).is_file():
        there = sorted(path.parent.name for path in (home / "ray").glob(f"*/{SETTINGS_FILE}"))
        raise InputError(f"no sweep '{name}' in {home / 'ray'}: sweeps there: {', '.join(there) or 'none'}")
    settings = SweepSettings(**json.loads((directory / SETTINGS_FILE).read_text()))
    if isinstance(settings.reference, dict):
        settings = replace(settings, reference=UntrainedPoint(**settings.reference))
    definition = stored_definition(name, home)
    warn_of_another_optuna(settings, optuna_version(definition))
    return definition, replace(settings, home=str(home), tracking_uri=tracking_uri or settings.tracking_uri)


def stored_definition(name: str, home: Path) -> Sweep:
    """The definition that a sweep of this home was started with."""
    directory = directory_of(name, home)
    know_former_names()
    return cloudpickle.loads((directory / DEFINITION_FILE).read_bytes())


def is_sweep(name: str, home: Path) -> bool:
    """Whether a sweep of this home has the name."""
    return Path(name).name == name and (home / "ray" / name / SETTINGS_FILE).is_file()


def directory_of(name: str, home: Path) -> Path:
    """The folder of a sweep of this home. Raises `InputError` for anything but a name.

    A definition is a pickle of our own making, and reading a pickle runs code: it is read from the user's own home
    alone, never from a path that someone names or from storage.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"'{name}' is not the name of a sweep: sweeps are found by name in {home / 'ray'}")
    return home / "ray" / name


def optuna_version(definition: Sweep) -> str | None:
    """The version of Optuna, where it decides which trials there are."""
    import optuna

    return optuna.__version__ if isinstance(definition.search, Tpe) else None


def warn_of_another_optuna(settings: SweepSettings, here: str | None) -> None:
    """One line on stderr where the sweep began with another version than is installed `here`."""
    if settings.optuna != here and here is not None:
        began = f"Optuna {settings.optuna}" if settings.optuna else "an Optuna that it did not note"
        print(
            f"warning: sweep '{settings.name}' began with {began}, and here is {here}: it may propose other trials from now on",
            file=sys.stderr,
        )
