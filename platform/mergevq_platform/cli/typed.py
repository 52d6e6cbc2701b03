"""Messages on the command line name options as they are typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mergevq.errors import InputError

# What Python and recipes call the options of the verbs of data; in quotes it is a name out of a file.
_KEYS = re.compile(r"(?<![\w'./-])(?:data\.)?(label_column|image_column|validation_fraction)(?![\w'./=])")


def as_typed(text: str) -> str:
    """A text of the library with --label-column for data.label_column, and the like."""
    return _KEYS.sub(lambda match: f"--{match[1].replace('_', '-')}", text)


@contextmanager
def naming_options() -> Iterator[None]:
    """Let what is refused within name options as they are typed."""
    try:
        yield
    except InputError as error:
        if (text := as_typed(str(error))) == str(error):
            raise
        raise InputError(text) from None
