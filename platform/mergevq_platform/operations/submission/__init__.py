"""Submitting verbs to a Ray cluster as jobs, and following, listing and stopping those jobs.

verb.py       a verb's words, checked here first
staging.py    what a job needs of this machine, in one folder
packages.py   what the cluster has of what we need
client.py     Ray's client of a cluster's jobs, signed in
submit.py     a verb as a job
following.py  a job's log to its end, why it waits, its exit status
jobs.py       the jobs of a cluster: listing, finding, stopping
"""

from mergevq_platform.operations.submission.client import ClusterClient
from mergevq_platform.operations.submission.following import end_of, follow
from mergevq_platform.operations.submission.jobs import list_jobs, require, stop
from mergevq_platform.operations.submission.submit import DriverResources, submit
from mergevq_platform.operations.submission.verb import Verb, read_verb

__all__ = [
    "ClusterClient",
    "DriverResources",
    "Verb",
    "end_of",
    "follow",
    "list_jobs",
    "read_verb",
    "require",
    "stop",
    "submit",
]
