"""Notes of runs and experiments in MLflow: ours are renewed, a person's are never written over.

A note of ours ends with a seal: a comment, which MLflow's page does not show, with the hash of all that stands before it.
Whoever writes or edits a note breaks the seal or leaves none, and the note is theirs from then on. An empty note is nobody's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping

NOTE_TAG = "mlflow.note.content"
RUN_ID = (
    "$MLFLOW_RUN_ID"  # in a note of a journal, which knows no server's id of the run; see `artifact_address`
)
NOTE_CHARS = 8000  # of a run's tag; MLflow cuts what is longer
_SEAL = re.compile(r"\n\n<!-- mergevq ([0-9a-f]{16}) -->\Z")
_SEAL_CHARS = len("\n\n<!-- mergevq 0123456789abcdef -->")


def artifact_address(path: str) -> str:
    """The address of an artifact of the run itself, relative to MLflow's page: it holds behind any prefix."""
    return f"get-artifact?path={path.replace('/', '%2F')}&run_uuid={RUN_ID}"


def sealed(text: str, run_id: str | None = None) -> str:
    """The note as it goes to a server, at most `NOTE_CHARS` long; `run_id` is the server's id of its run."""
    if run_id is not None:
        text = text.replace(RUN_ID, run_id)
    limit = NOTE_CHARS - _SEAL_CHARS
    text = text.rstrip() if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return f"{text}\n\n<!-- mergevq {_digest(text)} -->"


def may_write(tags: Mapping[str, str], former: Collection[str] = ()) -> bool:
    """Whether the note among `tags` is ours, or nobody's. `former` are notes that were written before there was a seal."""
    note = tags.get(NOTE_TAG, "")
    seal = _SEAL.search(note)
    if seal is not None:
        return seal[1] == _digest(note[: seal.start()])
    return not note.strip() or note in former


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
