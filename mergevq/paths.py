"""Types of configuration fields that name a file or folder.

Code that makes paths absolute, uploads files or checks their presence reads the type of a field, not its name.
"""

from __future__ import annotations

import enum
from typing import Annotated


class PathKind(enum.Enum):
    """The content of a path."""

    WEIGHTS = "a file of weights"  # its hash belongs to the field `sha256` or `<name>_sha256` beside it
    EXPORT = "a directory with model.safetensors"
    DATA = "a set of images"
    CODES = "a code set"
    RUN = "a run, a checkpoint or a model alone"


WeightsPath = Annotated[str, PathKind.WEIGHTS]
ExportPath = Annotated[str, PathKind.EXPORT]
