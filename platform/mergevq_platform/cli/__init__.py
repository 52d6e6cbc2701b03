"""The command line: `mergevq VERB …`. Every verb is a thin call of a function that Python can call as well.

Exit status: 0 done, 1 a failure of ours or of the machine, 2 something the user can fix, 130 interrupted or stopped
before its end (what is left to do then can be resumed, and nothing that waits for the end should go on).
"""

from __future__ import annotations

import argparse
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
    store,
    sweeps,
    training,
)
from mergevq_platform.distributed.failures import INTERRUPTED, one_line, root_cause
from mergevq_platform.storage import settings

# What a user can fix, by a message of ours or by the name of the file that the system's own gives.
FAULTS_OF_PLACES = (InputError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Errors are one line on stderr unless `--debug` asks for the traceback."""
    options = parse(arguments)
    if not options.debug:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without lines of code
    try:
        return (
            options.function(options) or 0
        )  # a verb that returns a status: of a job, or of a run that was stopped
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"mergevq: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(root_cause(error), FAULTS_OF_PLACES) else 1


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
    for module in (data, training, evaluation, generation, sweeps, store, cluster, preflight):
        module.add(verbs)
    return parser
