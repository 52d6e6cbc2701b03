"""`mergevq submit` and `jobs`: verbs as jobs of a Ray cluster."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_group, add_verb
from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.operations.submission import ClusterClient


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_submit(verbs)
    _add_jobs(verbs)


def _add_submit(verbs: Any) -> None:
    submit = add_verb(
        verbs,
        "submit",
        help="run a verb as a job of a Ray cluster",
        usage="mergevq submit [options] -- VERB …",
        description="Upload our code and the files that VERB names, run it on the cluster, follow its log; the exit status is the "
        "job's. Ctrl-C leaves the job running.",
        examples=[
            "mergevq submit --address http://HEAD:8265 -- train demo",
            "mergevq submit --urgent --address http://HEAD:8265 -- train demo",
        ],
    )
    _add_address(submit)
    submit.add_argument("--home", help="where runs live on the cluster (default: its own MERGEVQ_HOME)")
    submit.add_argument("--name", help="the job's name, and the run's (default: verb, recipe, time, letters)")
    submit.add_argument(
        "--cpus", type=float, help="CPUs of the job's own process (default: none, on the head)"
    )
    submit.add_argument(
        "--gpus", type=float, help="GPUs of the job's own process, for verbs that compute in it"
    )
    submit.add_argument("--memory", type=float, metavar="GIB", help="memory of the job's own process")
    submit.add_argument(
        "--image-has-mergevq", action="store_true", help="upload no code: the cluster's image holds it"
    )
    submit.add_argument(
        "--pip", action="append", default=[], metavar="PACKAGE", help="install this as well (again for more)"
    )
    submit.add_argument(
        "--include",
        action="append",
        default=[],
        type=user_path,
        metavar="PATH",
        help="upload this too: a file or a folder below here; .gitignore counts (again for more)",
    )
    submit.add_argument(
        "--upload-limit", type=float, default=50, metavar="MIB", help="refuse a larger upload (default 50)"
    )
    submit.add_argument(
        "--urgent",
        action="store_true",
        help="of train: sweeps and yielding trainings there make room, and go on after it",
    )
    submit.add_argument("--no-follow", action="store_true", help="return as soon as the job is submitted")
    submit.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- VERB …", help="the verb to run there, with its options"
    )
    submit.set_defaults(function=_submit)


def _add_jobs(verbs: Any) -> None:
    jobs = add_group(
        verbs,
        "jobs",
        help="submitted jobs",
        description="List the jobs that mergevq submit made, follow a job's log, or stop it.",
        examples=["mergevq jobs list"],
    )
    listing = add_verb(
        jobs,
        "list",
        help="our jobs on the cluster, newest first",
        description="List the cluster's jobs that mergevq submitted: verb, recipe, state, commit, user.",
        examples=["mergevq jobs list --address http://HEAD:8265"],
    )
    listing.add_argument("--all", action="store_true", help="everyone's jobs")
    listing.set_defaults(function=_list)
    logs = add_verb(
        jobs,
        "logs",
        help="a job's log; goes on to its end, and exits with its status",
        description="Print a job's log from its beginning and follow it. Ctrl-C leaves the job running.",
        examples=["mergevq jobs logs JOB"],
    )
    logs.add_argument("job", help="the job's name, as mergevq jobs list prints it")
    logs.add_argument("--no-follow", action="store_true", help="only what there is by now")
    logs.set_defaults(function=_logs)
    stop = add_verb(
        jobs,
        "stop",
        help="stop a job: it writes a checkpoint, then ends",
        description="Ask a job to write a checkpoint and end; mergevq train --resume RUN then goes on.",
        examples=["mergevq jobs stop JOB"],
    )
    stop.add_argument("job", help="the job's name, as mergevq jobs list prints it")
    stop.set_defaults(function=_stop)
    for parser in (listing, logs, stop):
        _add_address(parser)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (default RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )


def _client(options: argparse.Namespace) -> ClusterClient:
    from mergevq_platform.operations.submission import ClusterClient

    client = ClusterClient(options.address, home=read_settings().home)
    if client.sends_token_in_clear:
        print(
            f"warning: the token goes to {client.address} unencrypted: use https, or ssh -L 8265:localhost:8265 HEAD",
            file=sys.stderr,
        )
    return client


def _submit(options: argparse.Namespace) -> int:
    from mergevq_platform.operations import submission

    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if options.urgent:
        words = _urgent(words)
    verb = submission.read_verb(
        words, options.parse
    )  # before the cluster is asked: a typing error costs no wait
    client = _client(options)
    job = submission.submit(
        client,
        verb,
        local_home=read_settings().home,
        home=options.home,
        name=options.name,
        driver=submission.DriverResources(
            cpus=options.cpus,
            gpus=options.gpus,
            memory_bytes=int(options.memory * 2**30) if options.memory else None,
        ),
        image_has_mergevq=options.image_has_mergevq,
        pip=options.pip,
        include=options.include,
        limit_bytes=int(options.upload_limit * 1024**2),
    )
    if options.no_follow:
        print(f"follow it: mergevq jobs logs {job}")
        return 0
    return _follow(client, job)


def _urgent(words: list[str]) -> list[str]:
    if words[:1] != ["train"]:
        verb = f"'{words[0]}'" if words else "no verb"
        raise InputError(f"--urgent is for train, and after -- stands {verb}: leave it out")
    return words if "--urgent" in words else [words[0], "--urgent", *words[1:]]


def _follow(client: ClusterClient, job: str) -> int:
    from mergevq_platform.operations import submission

    try:
        status = submission.follow(client, job)
    except KeyboardInterrupt:
        print(
            f"\nthe job goes on; follow it: mergevq jobs logs {job}; stop it: mergevq jobs stop {job}",
            file=sys.stderr,
        )
        raise
    if status:
        print(f"job {job} {submission.end_of(client, job)}", file=sys.stderr)
    return status


def _list(options: argparse.Namespace) -> None:
    from rich.table import Table

    from mergevq_platform.evaluation.tables import print_table
    from mergevq_platform.operations import submission

    table = Table()
    for title in ("job", "verb", "recipe", "state", "began", "commit", "user"):
        table.add_column(title, no_wrap=title != "job", overflow="fold")
    for job in submission.list_jobs(_client(options), all_jobs=options.all):
        began = time.localtime(job.start_time / 1000) if job.start_time else None
        told = [
            (job.metadata or {}).get(f"mergevq.{key}", "") for key in ("verb", "recipe", "commit", "user")
        ]
        table.add_row(
            *(job.submission_id, told[0], told[1], job.status.lower()),
            *(time.strftime("%m-%d %H:%M", began) if began else "", told[2][:8], told[3]),
        )
    print_table(table)


def _logs(options: argparse.Namespace) -> int:
    from mergevq_platform.operations import submission

    client = _client(options)
    submission.require(client, options.job)
    if options.no_follow:
        print(client.get_job_logs(options.job), end="")
        return 0
    return _follow(client, options.job)


def _stop(options: argparse.Namespace) -> None:
    from mergevq_platform.operations import submission

    client = _client(options)
    status = submission.stop(client, options.job)
    print(f"job {options.job}: {status.lower()}")
    if status == "FAILED":
        raise InputError(f"the job failed before it could stop: mergevq jobs logs {options.job}")
