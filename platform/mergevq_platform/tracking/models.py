"""Tokenizers as MLflow models: logged with their metrics and data, registered, and fetched again.

A model holds our own safetensors and configuration, the recipe and where it came from; MLflow's `python_function`
flavour names the module that loads it (`serving.py`), so that nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq_platform.tracking.listing import TrackedRun
from mergevq_platform.tracking.records import now_ms
from mergevq_platform.tracking.store import Store, import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

SCHEME = "models:/"
LOADER = "mergevq_platform.tracking.serving"
MODEL_TAG = "mergevq.model"  # of a version: the id of its model
DATA = "tokenizer"  # the folder with our own files inside the model
ORIGIN = "origin.json"
_NAME_LETTERS = 255  # the width of MLflow's columns
_NOT_IN_NAMES = "/:@'\"`%?#\\"  # of a URI or of a filter, or refused by MLflow itself
FILES = ("config.json", "model.safetensors", "recipe.yaml")


def parse_target(text: str) -> tuple[str, str | None]:
    """(name, alias) of `NAME` or `NAME@ALIAS`. Raises `InputError` for what MLflow would refuse; see `check_target`."""
    name, mark, alias = text.partition("@")
    check_target(name, alias if mark else None)
    return name, alias if mark else None


def check_target(name: str, alias: str | None = None) -> None:
    """Raise `InputError`, naming the rule, for a model's name or an alias that MLflow or its URIs cannot hold."""
    if not name.strip() or name != name.strip() or name in (".", "..") or len(name) > _NAME_LETTERS:
        raise InputError(
            f"model name '{name[:40]}': take 1 to {_NAME_LETTERS} letters without blanks at either end, not only dots"
        )
    if wrong := sorted({letter for letter in name if letter in _NOT_IN_NAMES or not letter.isprintable()}):
        raise InputError(
            f"model name '{name}' holds {' and '.join(map(repr, wrong))}: none of {' '.join(_NOT_IN_NAMES)} may be in it"
        )
    if alias is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9_-]+", alias) or len(alias) > _NAME_LETTERS:
        raise InputError(f"alias '{alias[:40]}': take letters, digits, '_' and '-' ({_NAME_LETTERS} at most)")
    if alias.lower() == "latest" or re.fullmatch(r"[vV][0-9]+", alias):
        raise InputError(
            f"alias '{alias}' is one that MLflow keeps for itself ('latest', and 'v' with a number): choose another, such as champion"
        )


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    alias: str | None
    model_id: str

    @property
    def uri(self) -> str:
        """The URI for `mlflow.pyfunc.load_model` and `mergevq evaluate`."""
        return f"{SCHEME}{self.name}@{self.alias}" if self.alias else f"{SCHEME}{self.name}/{self.version}"


@dataclass(frozen=True)
class Fetched:
    """A registered tokenizer on this disk, and the run and step that it came from."""

    path: Path
    uid: str
    step: int | None


def register_model(
    store: Store,
    run: TrackedRun,
    directory: Path,
    *,
    name: str,
    alias: str | None,
    step: int | None,
    image_size: ImageSize,
    curve: Mapping[str, Mapping[int, float]],
    dataset: tuple[str, str] | None,
) -> Registered:
    """Log the tokenizer in `directory` as a model of `run`, and register it as `name`, under `alias`.

    `curve` (key → kept tokens → value) becomes the model's metrics, measured on `dataset` (name, digest). Raises `InputError`,
    before anything is uploaded, for a name or alias that cannot be.
    """
    check_target(name, alias)
    with store.session() as client:
        from mlflow.entities import LoggedModelOutput, Metric

        model = _uploaded(client, run, directory, name=name, step=step, image_size=image_size)
        about = {"dataset_name": dataset[0], "dataset_digest": dataset[1]} if dataset else {}
        measured = [
            Metric(f"model/{key}", value, now_ms(), kept, model_id=model.model_id, run_id=run.run_id, **about)
            for key, points in curve.items()
            for kept, value in points.items()
        ]
        for start in range(0, len(measured), 1000):
            client.log_batch(run.run_id, metrics=measured[start : start + 1000])
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        # Not `models:/ID`: MLflow would look that up in the store of its environment, which may be another.
        version = client.create_model_version(
            name, model.artifact_location, run_id=run.run_id, tags={MODEL_TAG: model.model_id}
        )
        client.set_logged_model_tags(
            model.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version.version}])}
        )
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=step or 0)])
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), alias, model.model_id)


def _uploaded(
    client: MlflowClient,
    run: TrackedRun,
    directory: Path,
    *,
    name: str,
    step: int | None,
    image_size: ImageSize,
) -> LoggedModel:
    with tempfile.TemporaryDirectory(prefix="mergevq-model-") as temporary:
        model = client.create_logged_model(
            run.experiment_id,
            name=name.replace(".", "_"),  # which a logged model's name may not hold
            source_run_id=run.run_id,
            model_type="tokenizer",
            params={"image_size": size_text(image_size), "step": str(step)},
        )
        try:
            folder = Path(temporary) / "model"
            origin = {"uid": run.uid, "run": run.name, "step": step}
            _write(folder, directory, origin, image_size, model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
    return model


def fetch_model(store: Store, uri: str, folder: Path) -> Fetched:
    """The tokenizer of `models:/NAME@alias`, `models:/NAME/VERSION` or `models:/ID`, copied once below `folder`.

    Raises `InputError` for a name, alias or version that the store does not have, and for a model of another kind.
    """
    mlflow = import_mlflow()
    name = uri.removeprefix(SCHEME)
    if not name.strip("/.@"):
        raise InputError(f"'{uri}' names no model: write models:/NAME@alias")
    with store.session() as client, _named(uri, store):
        if "@" in name:
            version = client.get_model_version_by_alias(*name.rsplit("@", 1))
        elif "/" in name:
            version = client.get_model_version(*name.rsplit("/", 1))
        else:
            version = None
        model_id = version.tags.get(MODEL_TAG, "") if version else name
        target = folder / model_id
        if not target.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                downloaded = mlflow.artifacts.download_artifacts(
                    artifact_uri=client.get_logged_model(model_id).artifact_location,
                    dst_path=temporary,
                    tracking_uri=store.uri,
                )
                _place(Path(downloaded) / "data" / DATA, target, uri)
    origin = json.loads((target / ORIGIN).read_text())
    return Fetched(target, origin["uid"], origin["step"])


@contextlib.contextmanager
def _named(uri: str, store: Store) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the store did not say that it has none
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{uri} is not in {store.public_uri} ({reason}): register it with mergevq register"
        ) from None


def _place(downloaded: Path, target: Path, uri: str) -> None:
    if not (downloaded / ORIGIN).is_file():
        raise InputError(f"{uri} is not a tokenizer that mergevq register wrote")
    try:
        os.rename(downloaded, target)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise


def _write(
    folder: Path, tokenizer: Path, origin: dict[str, Any], image_size: ImageSize, model_id: str
) -> None:
    import_mlflow()
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    import mergevq

    files = folder.with_name(DATA)
    files.mkdir(parents=True)
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, files / name)
    (files / ORIGIN).write_text(json.dumps(origin, indent=1))
    images = TensorSpec(np.dtype("uint8"), (-1, *height_width(image_size), 3))
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype("int64"), (-1, -1), "indices"),
        TensorSpec(np.dtype("int64"), (-1, -1), "source"),
        TensorSpec(np.dtype("float32"), (-1, -1), "features"),
        TensorSpec(np.dtype("uint8"), (-1, *height_width(image_size), 3), "reconstructions"),
    ]
    parameters = ParamSchema([ParamSpec("keep", "long", 0), ParamSpec("output", "string", "indices")])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=Model(model_id=model_id),
            loader_module=LOADER,
            data_path=str(files),
            signature=ModelSignature(Schema([images]), Schema(outputs), parameters),
            pip_requirements=[f"mergevq=={mergevq.__version__}"],
        )
