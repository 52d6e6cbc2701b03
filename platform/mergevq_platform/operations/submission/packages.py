"""The packages of a cluster, asked for once for each start of it, against our own requirements."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mergevq_platform
from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform.operations.submission.client import ClusterClient
from mergevq_platform.operations.submission.following import end_of, pending_reason

PROBE_SECONDS = 300.0
PROBE_HINT_SECONDS = 15.0
MARK = "mergevq-cluster-info "
FIXED = ("ray",)  # what a job cannot replace: it is the cluster
HEAVY = ("torch", "mlflow")
EXTRA = "platform"
SAME_NUMBERS = ("torch", "timm", "numpy", "scipy")  # another version of these computes other last digits

# Runs on the cluster with nothing of ours: the standard library alone. Values of secrets are not asked for.
_PROBE = """
import importlib.metadata as m, importlib.util as u, json, os, sys
names = {}
for d in m.distributions():
    n = d.metadata["Name"]
    if n: names.setdefault(n.lower().replace("_", "-").replace(".", "-"), d.version)
ours = u.find_spec("mergevq_platform") is not None and u.find_spec("mergevq_platform").origin is not None
env = {k: os.environ[k] for k in ("MERGEVQ_HOME", "MERGEVQ_STORAGE") if os.environ.get(k)}
print("%s" + json.dumps({"python": sys.version.split()[0], "versions": names, "holds_mergevq": ours,
    "environment": env, "tracking": bool(os.environ.get("MLFLOW_TRACKING_URI"))}))
"""


@dataclass(frozen=True)
class ClusterInfo:
    """A cluster's interpreter, packages and settings."""

    python: str
    versions: dict[str, str]
    holds_mergevq: bool  # our package is importable there
    environment: dict[str, str]  # MERGEVQ_HOME and MERGEVQ_STORAGE as the cluster sets them
    tracking: bool  # the cluster sets MLFLOW_TRACKING_URI


@dataclass(frozen=True)
class Installation:
    """The packages to install for a job, and the warnings for the user."""

    install: list[str] = field(default_factory=list)  # requirements for the runtime environment
    warnings: list[str] = field(default_factory=list)


def query(client: ClusterClient, home: Path) -> ClusterInfo:
    """The info of a cluster, by a job of a second; remembered in `home` until the cluster starts anew."""
    memory = home / "clusters" / f"{client.about.get('session_name', 'unnamed')}.json"
    if memory.is_file():
        return ClusterInfo(**json.loads(memory.read_text()))
    info = _probed(client)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_whole(memory, json.dumps(asdict(info)))
    return info


def compare(info: ClusterInfo, needed: list[Requirement]) -> Installation:
    """The packages to install, and the warnings. Raises `InputError` for what no job can change."""
    wanted = python_requirement()
    if Version(info.python) not in Requirement(f"python{wanted}").specifier:
        raise InputError(f"the cluster runs Python {info.python}, mergevq needs {wanted}: take another image")
    found = Installation()
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        there = info.versions.get(name)
        if there is not None and requirement.specifier.contains(there, prereleases=True):
            here = _version_here(name)
            if name in SAME_NUMBERS and here is not None and _minor(here) != _minor(there):
                found.warnings.append(f"{name} is {there} there and {here} here: the last digits may differ")
            continue
        if name in FIXED:
            raise InputError(
                f"the cluster runs {name} {there or 'unknown'}, mergevq needs {requirement.specifier}: start it with a "
                f"fitting {name}, since a job cannot change it"
            )
        if name in HEAVY:
            found.warnings.append(
                f"{name} is installed for this job: minutes on every node; an image has it ready"
            )
        found.install.append(str(requirement))
    return found


def of_image(info: ClusterInfo) -> Installation:
    """An installation without packages, and a warning where a cluster's image holds another version of mergevq than this one."""
    there, here = info.versions.get("mergevq"), _version_here("mergevq")
    differ = there is not None and here is not None and there != here
    return Installation(warnings=[f"the image holds mergevq {there}, this is {here}"] if differ else [])


def requirements() -> list[Requirement]:
    """The requirements of our distribution and its extra `platform`: of a checkout's pyproject.toml, else of its metadata."""
    project = _project()
    if project:
        texts = [*project["dependencies"], *project.get("optional-dependencies", {}).get(EXTRA, [])]
    else:
        texts = importlib.metadata.requires("mergevq") or []
    found = [Requirement(text) for text in texts]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": EXTRA})]


def python_requirement() -> str:
    """The Python versions that we run on."""
    project = _project()
    return (
        project["requires-python"] if project else importlib.metadata.metadata("mergevq")["Requires-Python"]
    )


def _project() -> dict[str, Any] | None:
    path = Path(mergevq_platform.__file__ or "").resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text()).get("project", {}) if path.is_file() else {}
    return project if project.get("name") == "mergevq" else None


def _probed(client: ClusterClient) -> ClusterInfo:
    job = client.submit_job(
        entrypoint=f"python -c {shlex.quote(_PROBE % MARK)}", metadata={"mergevq.verb": "probe"}
    )
    began, hinted = time.monotonic(), False
    while not (info := client.get_job_info(job)).status.is_terminal():
        seconds = time.monotonic() - began
        if seconds > PROBE_SECONDS:
            client.stop_job(job)
            raise InputError(
                f"the cluster started no job within {PROBE_SECONDS:.0f} s: {pending_reason(client, info)}"
            )
        if seconds > PROBE_HINT_SECONDS and not hinted:
            print(f"waiting for the cluster: {pending_reason(client, info)}", file=sys.stderr)
            hinted = True
        time.sleep(0.3)
    for line in client.get_job_logs(job).splitlines():
        if line.startswith(MARK):
            client.delete_job(job)
            return ClusterInfo(**json.loads(line.removeprefix(MARK)))
    raise InputError(
        f"the cluster cannot run a job ({end_of(client, job)}): look at `mergevq jobs logs {job}`"
    )


def _version_here(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> tuple[int, ...]:
    return Version(version).release[:2]
