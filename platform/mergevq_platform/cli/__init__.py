"""The command line: `mergevq VERB …`. Every verb is a thin call of a function that Python can call as well.

Exit status: 0 done, 1 a failure of ours or of the machine, 2 something the user can fix, 130 interrupted or stopped
before its end (what is left to do then can be resumed, and nothing that waits for the end should go on).
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence

from mergevq.errors import InputError
from mergevq_platform.cli import (
    cluster,
    data,
    evaluation,
    generation,
    preflight,
    reconstruction,
    store,
    sweeps,
    training,
)
from mergevq_platform.distributed.failures import INTERRUPTED, one_line, root_cause
from mergevq_platform.storage import settings

# What a user can fix, by a message of ours or by the name of the file that the system's own gives.
FAULTS_OF_PLACES = (InputError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

READER_LEFT = 141  # as a shell counts a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Errors are one line on stderr unless `--debug` asks for the traceback."""
    options = parse(arguments)
    if not options.debug:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without lines of code
    try:
        status = (
            options.function(options) or 0
        )  # a verb may return one: of a job, or of a run that was stopped
        sys.stdout.flush()
        if "ray" in sys.modules:
            from mergevq_platform.distributed.cluster import stay_for_urgent

            stay_for_urgent()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        if not _reader_left():
            return _report(error, options.debug)
        return READER_LEFT
    except Exception as error:
        return _report(error, options.debug)


def _report(error: Exception, debug: bool) -> int:
    """Print an error; returns the exit status that it stands for."""
    if debug:
        traceback.print_exception(error)
    else:
        print(f"mergevq: {one_line(error)}", file=sys.stderr)
    return 2 if isinstance(root_cause(error), FAULTS_OF_PLACES) else 1


def _reader_left() -> bool:
    """Whether standard output goes to a program that has ended (`mergevq runs show RUN | head`); then no more is printed."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one verb; exits with status 2 and a usage line where they are wrong."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse does not take up a verb's positional words again after an option; a.b=c may stand anywhere.
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    if "storage" in options:
        options.storage = options.storage or settings.storage_of_environment()
    return options


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mergevq",
        description="Train MergeVQ tokenizers and generators on a Ray cluster and compare rFID and probe accuracy over kept tokens in "
        "MLflow.",
        epilog="Things are kept under runs/ (or MERGEVQ_HOME). MLFLOW_TRACKING_URI and RAY_ADDRESS point elsewhere.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(parse=parse)  # for the verb that takes a verb
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (data, training, evaluation, reconstruction, generation, sweeps, store, cluster, preflight):
        module.add(verbs)
    return parser
