"""What the cluster has of what we need: asked once for each start of a cluster, compared with our own requirements."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mergevq_platform
from mergevq.errors import InputError
from mergevq_platform.operations.submission.client import Cluster
from mergevq_platform.operations.submission.following import end_of, pending_reason
from mergevq_platform.storage.files import write_whole

PROBE_SECONDS = 300.0
PROBE_HINT_SECONDS = 15.0
MARK = "mergevq-cluster-facts "
FIXED = ("ray",)  # what a job cannot replace: it is the cluster
HEAVY = ("torch", "mlflow")
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
class Facts:
    """A cluster's interpreter, packages and places."""

    python: str
    versions: dict[str, str]
    holds_mergevq: bool  # our package is importable there
    environment: dict[str, str]  # MERGEVQ_HOME and MERGEVQ_STORAGE as the cluster sets them
    tracking: bool  # the cluster sets MLFLOW_TRACKING_URI


@dataclass(frozen=True)
class Plan:
    """What has to be installed for a job, and what the user should know."""

    install: list[str] = field(default_factory=list)  # requirements for the runtime environment
    warnings: list[str] = field(default_factory=list)


def ask(cluster: Cluster, home: Path) -> Facts:
    """The facts of a cluster, by a job of a second; remembered in `home` until the cluster starts anew."""
    memory = home / "clusters" / f"{cluster.about.get('session_name', 'unnamed')}.json"
    if memory.is_file():
        return Facts(**json.loads(memory.read_text()))
    facts = _probed(cluster)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_whole(memory, json.dumps(asdict(facts)))
    return facts


def compare(facts: Facts, requirements: list[Requirement]) -> Plan:
    """What to install and to warn of. Raises `InputError` for what no job can put right."""
    wanted = python_requirement()
    if Version(facts.python) not in Requirement(f"python{wanted}").specifier:
        raise InputError(
            f"the cluster runs Python {facts.python}, mergevq needs {wanted}: take another image"
        )
    plan = Plan()
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        there = facts.versions.get(name)
        if there is not None and requirement.specifier.contains(there, prereleases=True):
            here = _version_here(name)
            if name in SAME_NUMBERS and here is not None and _minor(here) != _minor(there):
                plan.warnings.append(f"{name} is {there} there and {here} here: the last digits may differ")
            continue
        if name in FIXED:
            raise InputError(
                f"the cluster runs {name} {there or 'unknown'}, mergevq needs {requirement.specifier}: start it with a "
                f"fitting {name}, since a job cannot change it"
            )
        if name in HEAVY:
            plan.warnings.append(
                f"{name} is installed for this job: minutes on every node; an image has it ready"
            )
        plan.install.append(str(requirement))
    return plan


def of_image(facts: Facts) -> Plan:
    """What there is to say of a cluster whose image holds mergevq: whether it is another version than this one."""
    there, here = facts.versions.get("mergevq"), _version_here("mergevq")
    differ = there is not None and here is not None and there != here
    return Plan(warnings=[f"the image holds mergevq {there}, this is {here}"] if differ else [])


def requirements() -> list[Requirement]:
    """Requirements of the model and of the extra `platform`: from the distribution's metadata, or from pyproject.toml of a checkout."""
    pyproject = _pyproject()
    if pyproject:
        project = pyproject["project"]
        texts = [*project["dependencies"], *project["optional-dependencies"]["platform"]]
    else:
        texts = importlib.metadata.requires("mergevq") or []
    found = [Requirement(text) for text in texts]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": "platform"})]


def python_requirement() -> str:
    """The Python versions that we run on."""
    pyproject = _pyproject()
    return (
        pyproject["project"]["requires-python"]
        if pyproject
        else importlib.metadata.metadata("mergevq")["Requires-Python"]
    )


def _pyproject() -> dict | None:
    path = Path(mergevq_platform.__file__ or "").resolve().parents[2] / "pyproject.toml"
    if not path.is_file():
        return None
    tree = tomllib.loads(path.read_text())
    return tree if tree.get("project", {}).get("name") == "mergevq" else None


def _probed(cluster: Cluster) -> Facts:
    script = _PROBE % MARK
    job = cluster.jobs.submit_job(
        entrypoint=f"python -c {shlex.quote(script)}", metadata={"mergevq.verb": "probe"}
    )
    deadline, began, hinted = time.monotonic() + PROBE_SECONDS, time.monotonic(), False
    while (info := cluster.jobs.get_job_info(job)) and not info.status.is_terminal():
        if not hinted and time.monotonic() - began > PROBE_HINT_SECONDS:
            print(f"waiting for the cluster: {pending_reason(cluster, info)}", file=sys.stderr)
            hinted = True
        if time.monotonic() > deadline:
            cluster.jobs.stop_job(job)
            raise InputError(
                f"the cluster started no job within {PROBE_SECONDS:.0f} s: {pending_reason(cluster, info)}"
            )
        time.sleep(0.3)
    for line in cluster.jobs.get_job_logs(job).splitlines():
        if line.startswith(MARK):
            cluster.jobs.delete_job(job)
            return Facts(**json.loads(line.removeprefix(MARK)))
    raise InputError(
        f"the cluster cannot run a job ({end_of(cluster, job)}): look at `mergevq jobs logs {job}`"
    )


def _version_here(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> tuple[int, ...]:
    return Version(version).release[:2]
