"""Stage-2 data: images tokenized once into code sets, and the stream that trains a generator from them."""

from mergevq_platform.codes.allocated import AllocatedCounts
from mergevq_platform.codes.codeset import Codes, CodeSet, open_codes
from mergevq_platform.codes.info import describe_codes, reached_lines
from mergevq_platform.codes.manifest import CodeManifest, is_code_set, read_manifest
from mergevq_platform.codes.stream import CodeStream
from mergevq_platform.codes.tokenizing import tokenize

__all__ = [
    "AllocatedCounts",
    "CodeManifest",
    "CodeSet",
    "CodeStream",
    "Codes",
    "describe_codes",
    "is_code_set",
    "open_codes",
    "reached_lines",
    "read_manifest",
    "tokenize",
]
