"""A verb as a Ray job, and the jobs that exist."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergevq.config import flattened, to_tree
from mergevq.errors import InputError
from mergevq_platform.operations.submission import packages, staging
from mergevq_platform.operations.submission.client import Cluster
from mergevq_platform.operations.submission.following import ASKED
from mergevq_platform.recipe import Recipe, weights_files
from mergevq_platform.storage import naming
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.storage.runs import git_commit
from mergevq_platform.tracking.models import parse_target
from mergevq_platform.tracking.proxies import LOOPBACK
from mergevq_platform.tracking.recorder import current_user

STOP_SECONDS = 600  # what a job gets to write its checkpoint when it is stopped; Ray's own default is 3
NOT_JOBS = ("submit", "jobs", "ui")
BEGINNING = ("train", "sweep")  # verbs whose --name is a new run's
RECORDING = ("train", "sweep", "evaluate", "sync", "runs")  # verbs that write or read the home's store
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
WITHDRAW_SECONDS = 120.0  # to take away a job that has not begun
_WITHDRAWAL = (
    "import ray; from ray.dashboard.modules.job import job_manager as jobs; "
    "ray.init(address='auto', log_to_driver=False); "
    "ray.kill(ray.get_actor(jobs.JOB_ACTOR_NAME_TEMPLATE.format(job_id={job!r}), "
    "namespace=jobs.SUPERVISOR_ACTOR_RAY_NAMESPACE))"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the job's own process (the driver) asks of the cluster; its workers ask for themselves."""

    cpus: float | None = None
    gpus: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of ours, as the cluster tells."""

    id: str
    verb: str
    recipe: str
    commit: str
    user: str
    status: str
    began_ms: int | None
    ended_ms: int | None


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb's words, and what they say about the run that they begin."""

    words: list[str]
    recipe: str | None = None
    name: str | None = None  # the run's, where the words give one
    names_a_run: bool = False  # takes --name, and none is given
    include: list[Path] = field(default_factory=list)  # files that its files name


def submit(
    cluster: Cluster,
    verb: Verb,
    *,
    local_home: Path,
    home: str | None = None,
    name: str | None = None,
    asked: Asked | None = None,
    image_has_mergevq: bool = False,
    pip: Sequence[str] = (),
    include: Sequence[Path] = (),
    limit_bytes: int = staging.LIMIT_BYTES,
    say: Callable[[str], None] = print,
) -> str:
    """Submit a verb (of `read_verb`) as a job and return the job's id.

    `home` is where runs live on the cluster (default: what the cluster sets as MERGEVQ_HOME). `pip` names packages to
    install besides those that are missing; `image_has_mergevq` uploads no code of ours. Raises `InputError`, before anything is
    uploaded, for paths that only this machine has, for packages that cannot be made to fit, and for secrets.
    """
    if name is not None:
        naming.check_name(name, "--name", longest=naming.LONGEST - naming.ADDED)
    for package in pip:
        refuse_credentials(package, "--pip", "what a job installs is open to all who see the cluster")
    facts = packages.ask(cluster, local_home)
    environment = _environment(cluster, facts, home, verb.words[0])
    if image_has_mergevq:
        if not facts.holds_mergevq:
            raise InputError("the cluster's image holds no mergevq: leave out --image-has-mergevq")
        plan = packages.of_image(facts)
    else:
        plan = packages.compare(facts, packages.requirements())
    for warning in plan.warnings:
        say(f"warning: {warning}")
    asked = asked or Asked()
    job = name or _name(verb)
    words = [*verb.words, "--name", job] if verb.names_a_run else verb.words
    with tempfile.TemporaryDirectory(prefix="mergevq-job-") as folder:
        staged = staging.stage(
            words,
            Path(folder),
            packages=not image_has_mergevq,
            include=[*verb.include, *include],
            limit_bytes=limit_bytes,
        )
        say(_described(staged))
        install = [*plan.install, *pip]
        if install:
            say(f"to be installed on the cluster: {', '.join(install)}")
        entrypoint = shlex.join(["python", "-m", "mergevq_platform.cli", *staged.words])
        try:
            cluster.jobs.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env={"env_vars": environment, "config": {"setup_timeout_seconds": 1800}}
                | ({"working_dir": folder} if staged.files else {})
                | ({"pip": install} if install else {}),
                metadata=_metadata(verb, asked),
                entrypoint_num_cpus=asked.cpus,
                entrypoint_num_gpus=asked.gpus,
                entrypoint_memory=asked.memory_bytes,
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise InputError(f"the cluster has a job '{job}' already: choose another --name") from None
    say(f"job {job}: mergevq {shlex.join(staged.words)}")
    return job


def read_verb(words: Sequence[str]) -> Verb:
    """Check a verb's words as the verb itself would, and what they name. Raises `InputError` for what it would refuse."""
    from mergevq_platform import recipe as recipes
    from mergevq_platform.cli import parse

    words = list(words)
    if not words:
        raise InputError("name a verb after --, such as: mergevq submit -- train g_256_d64")
    if words[0] in NOT_JOBS:
        raise InputError(f"'{words[0]}' is not a verb that runs as a job")
    for word in words:
        refuse_credentials(
            word,
            "on the command line",
            "a job's command line is open to all who see the cluster; set them in the cluster's environment "
            "(AWS_ACCESS_KEY_ID …, MLFLOW_TRACKING_PASSWORD)",
        )
    options = parse(words)
    named = getattr(options, "name", None)
    if named is not None and words[0] in BEGINNING:
        naming.check_name(named, "--name", longest=naming.LONGEST - naming.ADDED)
    if getattr(options, "register", None) is not None:
        parse_target(options.register)
    takes_name = "name" in options and not named and not getattr(options, "resume", None)
    given = [text for text in (getattr(options, "recipe", None), *getattr(options, "overrides", ())) if text]
    names = [text for text in given if "=" not in text]
    overrides = [text for text in given if "=" in text]
    match words[0]:
        case "train" if names:
            recipe = recipes.load(names[0], overrides)
            return Verb(
                words=words,
                recipe=recipe.name,
                name=named,
                names_a_run=takes_name,
                include=_uploaded_weights(recipe),
            )
        case "sweep" if options.sweep:
            return _read_sweep(words, options, named, takes_name)
    label = options.resume if getattr(options, "resume", None) else None
    return Verb(words=words, recipe=names[0] if names else None, name=label or named)


def _read_sweep(words: list[str], options: Any, named: str | None, takes_name: bool) -> Verb:
    from mergevq_platform.sweeps import choosers, loading

    chosen = loading.opened(
        options.sweep,
        options.over,
        [text for text in options.overrides if "=" in text],
        recipe=options.recipe,
        trials=options.trials,
        seeds=options.seeds,
    )
    corners = choosers.corners(chosen.space)
    weights = dict.fromkeys(
        file for params in corners for file in _uploaded_weights(chosen.recipe_of(params))
    )
    # The recipe that a sweep file names may be a file beside it.
    beside = [Path(chosen.recipe)] if Path(chosen.recipe).is_file() and not options.over else []
    if beside and beside[0].is_absolute():
        raise InputError(
            f"{options.sweep} names the recipe {beside[0]}: name it relative to the working directory"
        )
    return Verb(
        words=words, recipe=chosen.name, name=named, names_a_run=takes_name, include=[*beside, *weights]
    )


def _uploaded_weights(recipe: Recipe) -> list[Path]:
    # A relative path means this machine's: small weights go along, pictures and runs do not.
    for key, path in _elsewhere(recipe).items():
        if "://" not in path and not Path(path).expanduser().is_absolute():
            raise InputError(
                f"{key} is '{path}', a relative path: a job runs in a folder of its own, so name it where the cluster sees it, "
                f"{key}=/shared/… or a URI"
            )
    found = []
    for key, file in weights_files(recipe).items():
        if Path(file).is_absolute():
            continue
        if not Path(file).is_file() or key.endswith("directory"):
            raise InputError(
                f"{key} is '{file.removesuffix('/model.safetensors')}', a relative path: name it where the cluster sees it"
            )
        found.append(Path(file))
    return found


def _elsewhere(recipe: Recipe) -> dict[str, str]:
    """What a job reads and no job takes along, key path → place: pictures, codes, checkpoints of other runs."""
    flat = flattened(to_tree(recipe))
    keys = ("data.path", "task.codes", "task.tokenizer", "task.generator")
    return {key: flat[key] for key in keys if isinstance(flat.get(key), str)}


def _environment(cluster: Cluster, facts: packages.Facts, home: str | None, verb: str) -> dict[str, str]:
    # Everyone who sees the cluster can read a job's environment: places go here, secrets do not.
    found = {STOP_WAIT: str(STOP_SECONDS)}
    if home:
        if "://" in home or not Path(home).is_absolute():
            raise InputError(f"--home '{home}': name an absolute path that every node of the cluster sees")
        found["MERGEVQ_HOME"] = home
    elif "MERGEVQ_HOME" not in facts.environment and verb in RECORDING:
        raise InputError(
            "where do runs live on the cluster? A job's own folder goes with the job: give --home PATH, one that every node "
            "sees, or set MERGEVQ_HOME in the cluster's environment"
        )
    storage = os.environ.get("MERGEVQ_STORAGE")
    if storage and "MERGEVQ_STORAGE" not in facts.environment:
        refuse_credentials(storage, "MERGEVQ_STORAGE", "set them in the cluster's own environment")
        found["MERGEVQ_STORAGE"] = storage
    tracking = os.environ.get("MLFLOW_TRACKING_URI")
    if tracking and not facts.tracking:
        refuse_credentials(
            tracking,
            "MLFLOW_TRACKING_URI",
            "a job's environment is open to all who see the cluster; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "in the cluster's environment, and give the URI without them",
        )
        parts = urllib.parse.urlsplit(tracking)
        if parts.scheme in ("http", "https") and parts.hostname in LOOPBACK and not cluster.is_local:
            raise InputError(
                f"MLFLOW_TRACKING_URI {tracking} is this machine's: give the address that the cluster reaches"
            )
        found["MLFLOW_TRACKING_URI"] = tracking
    return found


def _name(verb: Verb) -> str:
    begins = verb.names_a_run  # then the job's name is the run's, and those begin with the recipe
    label = "-".join(part for part in ("" if begins else verb.words[0], verb.recipe or verb.name) if part)
    return naming.derived(
        naming.fitted(Path(label).name), f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )


def _metadata(verb: Verb, asked: Asked) -> dict[str, str]:
    resources = {"CPU": asked.cpus, "GPU": asked.gpus, "memory": asked.memory_bytes}
    found = {
        "mergevq.verb": verb.words[0],
        "mergevq.recipe": verb.recipe,
        "mergevq.commit": git_commit(),
        "mergevq.user": current_user(),
        ASKED: json.dumps({kind: amount for kind, amount in resources.items() if amount}),
    }
    return {key: value for key, value in found.items() if value}


def _described(staged: staging.Staged) -> str:
    ours = ("mergevq/", "mergevq_platform/")
    code = [count for name, count in staged.files.items() if name.startswith(ours)]
    named = [name for name in staged.files if not name.startswith(ours)]
    parts = [f"mergevq itself ({len(code)} files)"] if code else []
    parts += [f"{name} ({staging.size(staged.files[name])})" for name in named[:8]]
    if len(named) > 8:
        parts.append(f"{len(named) - 8} more")
    return f"uploading {staging.size(staged.bytes)}: {', '.join(parts) or 'nothing'}"


def list_jobs(cluster: Cluster, *, all_jobs: bool = False) -> list[Job]:
    """The jobs that we submitted, newest first; with `all_jobs` everyone's."""
    found = []
    for info in cluster.jobs.list_jobs():
        metadata = info.metadata or {}
        verb = metadata.get("mergevq.verb")
        if not info.submission_id or (not all_jobs and verb in (None, "probe")):
            continue
        found.append(
            Job(
                id=info.submission_id,
                verb=verb or "",
                recipe=metadata.get("mergevq.recipe", ""),
                commit=metadata.get("mergevq.commit", ""),
                user=metadata.get("mergevq.user", ""),
                status=str(info.status).lower(),
                began_ms=info.start_time,
                ended_ms=info.end_time,
            )
        )
    return sorted(found, key=lambda job: -(job.began_ms or 0))


def require(cluster: Cluster, job: str) -> Any:
    """A job's info. Raises `InputError` if the cluster knows none of that id."""
    try:
        return cluster.jobs.get_job_info(job)
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        known = ", ".join(found.id for found in list_jobs(cluster)[:5]) or "none"
        raise InputError(f"no job '{job}' at {cluster.address}: jobs there: {known}") from None


def stop(cluster: Cluster, job: str, *, say: Callable[[str], None] = print, poll_seconds: float = 0.5) -> str:
    """Stop a job gracefully and wait until it has ended; returns its status.

    The job's driver is sent SIGTERM, on which a run or a sweep ends at a step boundary with a checkpoint. It has
    `STOP_SECONDS` for that (given when it was submitted); then Ray kills it. One that waits for resources is withdrawn.
    """
    info = require(cluster, job)
    if info.status.is_terminal():
        say(f"job {job} has ended already: {str(info.status).lower()}")
        return str(info.status)
    if not (info.metadata or {}).get("mergevq.verb") and STOP_WAIT not in (info.runtime_env or {}).get(
        "env_vars", {}
    ):
        say(
            f"warning: job {job} was not submitted by mergevq: Ray gives it 3 s, perhaps too few for a checkpoint"
        )
    if str(info.status) == "PENDING":
        _withdraw(cluster, job, poll_seconds)
        say(f"job {job} had not begun: withdrawn")
        return "STOPPED"
    cluster.jobs.stop_job(job)
    say(f"asked {job} to stop; it writes a checkpoint first (up to {STOP_SECONDS // 60} minutes)")
    deadline = time.monotonic() + STOP_SECONDS + 60
    while time.monotonic() < deadline:
        status = cluster.jobs.get_job_status(job)
        if status.is_terminal():
            return str(status)
        time.sleep(poll_seconds)
    raise RuntimeError(f"job {job} has not ended after {STOP_SECONDS + 60} s: look at its node")


def _withdraw(cluster: Cluster, job: str, poll_seconds: float) -> None:
    # Ray's own stop is a message to the job's supervisor, which is not there yet; so the supervisor is taken away, from inside.
    errand = cluster.jobs.submit_job(
        entrypoint=f"python -c {shlex.quote(_WITHDRAWAL.format(job=job))}",
        metadata={"mergevq.verb": "withdraw"},
    )
    deadline = time.monotonic() + WITHDRAW_SECONDS
    while time.monotonic() < deadline:
        if cluster.jobs.get_job_status(errand).is_terminal() and require(cluster, job).status.is_terminal():
            cluster.jobs.delete_job(errand)
            return
        time.sleep(poll_seconds)
    raise RuntimeError(
        f"job {job} has not begun and could not be withdrawn within {WITHDRAW_SECONDS:.0f} s: mergevq jobs logs {errand}"
    )
