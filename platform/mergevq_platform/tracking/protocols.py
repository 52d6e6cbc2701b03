"""Which evaluated runs of a store may be compared: those whose protocol has one id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

PROTOCOL_TAG = "protocol.id"
FORMER_TAG = "protocol.data_fingerprint"  # of runs of before, which have all of the protocol as tags
_PREFIX = "protocol."
# What must be equal for two numbers to mean the same. Not the weights: they are what is compared.
_IDENTITY = ("extractor", "data_fingerprint", "images", "split", "preprocessing", "reference")


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """The id of a flattened protocol (`extractor.name`: …): equal where extractor, images and their preparation are."""
    parts = sorted((key, str(value)) for key, value in protocol.items() if key.split(".")[0] in _IDENTITY)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def protocol_of(tags: Mapping[str, str]) -> str | None:
    """The protocol's id by a run's tags; of runs of before, which have all of the protocol as tags, it is made from them."""
    if PROTOCOL_TAG in tags:
        return tags[PROTOCOL_TAG]
    protocol = {key.removeprefix(_PREFIX): value for key, value in tags.items() if key.startswith(_PREFIX)}
    return protocol_id(protocol) if protocol else None
