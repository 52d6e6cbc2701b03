"""Locations of runs, tracking store and checkpoints; the one file that reads these variables.

`MERGEVQ_HOME` moves everything, `MLFLOW_TRACKING_URI` the tracking store, `MERGEVQ_STORAGE` the checkpoints;
`MERGEVQ_WEIGHTS` is a folder of published weights, where files named without a folder are looked for. A recipe
mentions none of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process: home, the tracking store (None: sqlite in home), the checkpoint root, weights."""

    home: Path
    tracking_uri: str | None = None
    storage: str
    weights: Path | None = None

    @property
    def data(self) -> Path:
        """Datasets made by the `data` verbs when no folder is named."""
        return self.home / "data"


def read_settings(
    environ: Mapping[str, str] | None = None, *, home: Path | None = None, storage: str | None = None
) -> Settings:
    """The settings in use: arguments first, then the environment, then `runs/` under the working directory."""
    environ = os.environ if environ is None else environ
    home = default_home(environ) if home is None else home.expanduser().absolute()
    return Settings(
        home=home,
        tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
        storage=storage or storage_of_environment(environ) or str(home / "ray"),
        weights=Path(folder).expanduser().absolute() if (folder := environ.get("MERGEVQ_WEIGHTS")) else None,
    )


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """`MERGEVQ_HOME`, or `runs/` under the working directory; always absolute, never created here."""
    environ = os.environ if environ is None else environ
    # Absolute at once: Ray workers and MLflow's server run in other working directories.
    return Path(environ.get("MERGEVQ_HOME") or "runs").expanduser().absolute()


def storage_of_environment(environ: Mapping[str, str] | None = None) -> str | None:
    """`MERGEVQ_STORAGE`, the checkpoint root without `--storage`; None: in the home."""
    environ = os.environ if environ is None else environ
    return environ.get("MERGEVQ_STORAGE") or None
