"""The manifest of a code set: its splits and shards, checksums, and the identity of the tokenizer and of the images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.data.parquet.location import Location
from mergevq_platform.data.parquet.manifest import MANIFEST
from mergevq_platform.storage.tokenizer_ref import TokenizerRef

FORMAT = "mergevq-codes/1"


@dataclass(frozen=True)
class Group:
    """A row group of a shard."""

    rows: int
    keep: int


@dataclass(frozen=True)
class CodeShard:
    """A Parquet file of a split, relative to the code set's directory."""

    file: str
    bytes: int
    sha256: str
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> CodeShard:
        """A shard of its JSON form."""
        return cls(**{**tree, "groups": tuple(Group(**group) for group in tree["groups"])})


@dataclass(frozen=True, kw_only=True)
class CodeManifest:
    """The manifest of a code set. `views`: of each split, images times crops; `plan`: how it was made."""

    tokenizer: TokenizerRef
    classes: tuple[str, ...]
    splits: dict[str, tuple[CodeShard, ...]]
    views: dict[str, int]
    keeps: tuple[int, ...]
    plan: dict[str, Any]
    skipped: tuple[str, ...] = field(default=())  # images that could not be decoded

    def to_json(self) -> str:
        """The manifest file's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> CodeManifest:
        """Raises `InputError` if the text is not a code set's manifest."""
        try:
            tree = json.loads(text)
            if tree.pop("format") != FORMAT:
                raise InputError(f"{where} is no code set: make one with `mergevq tokenize TOKENIZER DIR`")
            return cls(
                tokenizer=TokenizerRef.of(tree.pop("tokenizer")),
                classes=tuple(tree.pop("classes")),
                splits={
                    name: tuple(map(CodeShard.of, shards)) for name, shards in tree.pop("splits").items()
                },
                keeps=tuple(tree.pop("keeps")),
                skipped=tuple(tree.pop("skipped")),
                **tree,
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is damaged ({error}): tokenize again") from None


def read_manifest(path: str | Path, location: Location | None = None) -> CodeManifest:
    """The manifest of a code set. Raises `InputError` where there is none."""
    text = (location or Location.of(path)).text(MANIFEST)
    if text is None:
        raise InputError(
            f"no code set at {path}: make it with `mergevq tokenize TOKENIZER {path}` (the same command goes on with one that "
            "was interrupted)"
        )
    return CodeManifest.from_json(text, f"{path}/{MANIFEST}")
