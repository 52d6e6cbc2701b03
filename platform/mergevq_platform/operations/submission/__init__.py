"""Submitting verbs to a Ray cluster as jobs, and following, listing and stopping those jobs.

staging.py    what a job needs of this machine, in one folder
packages.py   what the cluster has of what we need
client.py     the cluster's Jobs API, with its token
following.py  a job's log to its end, why it waits, its exit status
submit.py     a verb as a job; jobs that exist
"""

from mergevq_platform.operations.submission.client import Cluster
from mergevq_platform.operations.submission.following import end_of, exit_status, follow, pending_reason
from mergevq_platform.operations.submission.submit import (
    Asked,
    Job,
    Verb,
    list_jobs,
    read_verb,
    require,
    stop,
    submit,
)

__all__ = [
    "Asked",
    "Cluster",
    "Job",
    "Verb",
    "end_of",
    "exit_status",
    "follow",
    "list_jobs",
    "pending_reason",
    "read_verb",
    "require",
    "stop",
    "submit",
]
