"""The tracking store: which MLflow backend is in use, made ready once, and clients for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import sqlite3
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform.storage.credentials import without_credentials
from mergevq_platform.tracking.proxies import spare_loopback, through

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_ready: set[str] = set()


class StoreUnavailable(InputError):
    """A store that cannot be reached or that fails a request: its content is unknown."""


def import_mlflow() -> Any:
    """MLflow, imported late (it takes seconds) with telemetry off and bounded patience.

    Only defaults are set: a variable that the user has set stays as it is.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # By default a call to a server that is down blocks for four minutes, and a request may hang for two.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # Else a model takes uv.lock and pyproject.toml of whatever folder a user stands in, this repository for one.
        "MLFLOW_UV_AUTO_DETECT": "false",
    }.items():
        os.environ.setdefault(name, value)
    spare_loopback()
    import mlflow

    return mlflow


@dataclass(frozen=True, kw_only=True)
class Store:
    """An MLflow backend: plain strings, so that it travels to actors and other processes.

    `artifact_root` is the URI under which new experiments keep their files; None leaves that to the server.
    """

    uri: str
    artifact_root: str | None = None

    @classmethod
    def at(cls, home: Path, uri: str | None = None) -> Store:
        """The store at `uri` (a server or a database); by default sqlite in `home`, artifacts beside it."""
        home = Path(home).absolute()
        artifacts = (home / "artifacts").as_uri()
        if not uri:
            return cls(uri=_sqlite_uri(home / "mlflow.db"), artifact_root=artifacts)
        uri = uri.strip()
        scheme = urllib.parse.urlsplit(uri).scheme.partition("+")[0]
        match scheme:
            case "http" | "https":
                _check_address(uri)
                return cls(uri=scheme + uri[len(scheme) :].rstrip("/"))
            case "databricks":
                return cls(uri=uri)
            case "sqlite" if uri.startswith(_SQLITE) and uri != _SQLITE:
                # An absolute path: processes of a run do not share a working directory.
                given = uri.removeprefix(_SQLITE)
                try:
                    file = Path(given).expanduser().absolute()
                except RuntimeError:
                    raise InputError(
                        f"MLFLOW_TRACKING_URI '{uri}': no user of that name here; write the path out, sqlite:////path/mlflow.db"
                    ) from None
                return cls(uri=_sqlite_uri(file), artifact_root=artifacts)
            case "postgresql" | "mysql" | "mssql":
                return cls(uri=uri, artifact_root=artifacts)
        if uri == "databricks":
            return cls(uri=uri)
        raise InputError(
            f"MLFLOW_TRACKING_URI '{without_credentials(uri)}': MLflow no longer keeps runs in plain files; "
            "use sqlite:////path/mlflow.db, http://host:port, or leave it unset"
        )

    @property
    def is_server(self) -> bool:
        """Whether runs are reached through a server rather than a database file."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def public_uri(self) -> str:
        """The URI without a password, for messages and for files."""
        return without_credentials(self.uri)

    def prepare(self) -> None:
        """Create the embedded database, or update its schema, once, under a lock between processes."""
        if self.uri in _ready or not self.uri.startswith(_SQLITE):
            return
        file = Path(self.uri.removeprefix(_SQLITE))
        if _as_noted(file):
            _ready.add(self.uri)
            return
        import_mlflow()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import DatabaseError

        if file.is_dir():
            raise InputError(f"tracking store {file} is a directory: name the database file in it")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _openable(file)
            with _locked(file.with_name(file.name + ".lock")), _quiet():
                self._migrate(file)
                _note(file)
        except OSError as error:
            raise InputError(
                f"tracking store {file}: {error.strerror}; set MERGEVQ_HOME or MLFLOW_TRACKING_URI"
            ) from error
        except (sqlite3.DatabaseError, DatabaseError, MlflowException) as error:
            raise InputError(
                f"tracking store {file} cannot be used ({reason_of(error)}): free its disk, let it be written, or set "
                "MERGEVQ_HOME or MLFLOW_TRACKING_URI to another"
            ) from error
        _ready.add(self.uri)

    def client(self) -> MlflowClient:
        """A client of the prepared store."""
        self.prepare()
        return import_mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @contextlib.contextmanager
    def session(self) -> Iterator[MlflowClient]:
        """A client for a few questions; where the store does not answer them, `StoreUnavailable` says why in one line."""
        import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            yield self.client()
        except (MlflowException, ImportError) as error:  # a database's driver may not be installed
            raise StoreUnavailable(
                f"{self.failure(error)}; correct MLFLOW_TRACKING_URI, or ask again when it answers"
            ) from error

    def failure(self, error: BaseException) -> str:
        """The message of a failed request to this store."""
        return f"tracking store {self.public_uri}: {reason_of(error)}{through(self.uri)}"

    def experiment_id(self, client: MlflowClient, name: str) -> str:
        """The id of the experiment `name`, created if need be; any number of processes may call this at once."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            folder = re.sub(r"[^a-zA-Z0-9_-]+", "_", name)
            location = self.artifact_root and f"{self.artifact_root}/{folder}"
            try:
                return client.create_experiment(name, artifact_location=location)
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another process may have been first
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(
                f"experiment '{name}' was deleted in {self.public_uri}: "
                "restore it there, or choose another name"
            )
        return found.experiment_id

    def _migrate(self, file: Path) -> None:
        from alembic.util.exc import CommandError
        from mlflow.store.db import utils
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if file.exists():
            engine = utils.create_sqlalchemy_engine_with_retry(self.uri)
            try:
                version = utils._get_schema_version(engine)
                if version is not None and version != utils._get_latest_schema_revision():
                    # Migrations are not transactional: keep a copy.
                    shutil.copyfile(file, file.with_name(f"{file.name}.{version}"))
                    utils._upgrade_db(engine)
            except CommandError as error:
                raise InputError(
                    f"tracking store {file}: written by a newer MLflow ({error}); "
                    "upgrade mlflow here, or set MERGEVQ_HOME to another directory"
                ) from error
            finally:
                engine.dispose()
        SqlAlchemyStore(self.uri, self.artifact_root or "mlflow-artifacts:/")


def reason_of(error: BaseException) -> str:
    """The reason of a store's refusal, in a line: what its database said where there is one, without the layers above."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(original := getattr(inner, "orig", None), BaseException):
            error = original
            break
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the Python package '{error.name}', which is not installed"
    text = str(error)
    if "ConnectionPool" in text:  # requests wraps a word in a paragraph
        return _unreachable(text)
    if answer := re.search(r"failed with error code (\d+) != 200", text):
        return _refused(int(answer[1]))
    if "was not in a valid JSON format" in text:
        return "it answers, but not as an MLflow server does"
    lines = text.strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _unreachable(text: str) -> str:
    if "SSLError" in text:
        return "it cannot be reached by https: its certificate is not trusted here, or it speaks http"
    if found := re.search(r"too many (\d+) error responses", text):
        return f"it answers with error {found[1]}"
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return f"it cannot be reached: {found[1].lower() if found else 'no answer in time'}"


def _refused(status: int) -> str:
    match status:
        case 401 | 403:
            return (
                f"it refuses who asks ({status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN"
            )
        case 404:
            return (
                "it answers 404, as no MLflow server does: another server is there, or MLflow behind a path"
            )
    return f"it answers with error {status}"


def _note(file: Path) -> None:
    # Importing MLflow to find a database as it should be takes two seconds of every command.
    noted = {"mlflow": metadata.version("mlflow"), "revision": _revision(file)}
    write_whole(_noted(file), json.dumps(noted))


def _as_noted(file: Path) -> bool:
    """Whether this version of MLflow has left the database with the schema that it has now, and it can be written."""
    try:
        noted = json.loads(_noted(file).read_text())
        return bool(
            noted == {"mlflow": metadata.version("mlflow"), "revision": _revision(file)}
        ) and os.access(file, os.W_OK)
    except (OSError, ValueError, metadata.PackageNotFoundError, sqlite3.Error):
        return False


def _noted(file: Path) -> Path:
    return file.with_name(f"{file.name}.prepared")


def _revision(file: Path) -> str | None:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as database:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _openable(file: Path) -> None:
    # MLflow would try for minutes to open what is no database.
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
        database.execute("PRAGMA schema_version")


def _check_address(uri: str) -> None:
    parts, shown = urllib.parse.urlsplit(uri), without_credentials(uri)
    try:
        known = parts.hostname is not None and parts.port != 0
    except ValueError:  # no number, or one above 65535
        known = False
    if not known:
        raise InputError(f"MLFLOW_TRACKING_URI '{shown}' is no address: write http://host:port")
    if parts.fragment or parts.query:
        bare = shown.partition("#")[0].partition("?")[0]
        raise InputError(
            f"MLFLOW_TRACKING_URI '{shown}' is a page of MLflow's: give its server alone, {bare}"
        )


def _sqlite_uri(file: Path) -> str:
    # MLflow and its database layer disagree on who decodes these characters.
    if set("%?#") & set(str(file)):
        raise InputError(
            f"tracking store {file}: a path with '%', '?' or '#' cannot be used; set MERGEVQ_HOME"
        )
    return f"{_SQLITE}{file}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Sixty lines of migration steps tell a user nothing.
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
