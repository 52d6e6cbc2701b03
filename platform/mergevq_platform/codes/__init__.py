"""Stage-2 data: images tokenized once into code sets, and the stream that trains a generator from them."""

from mergevq_platform.codes.codeset import Codes, CodeSet, open_codes
from mergevq_platform.codes.manifest import CodeManifest, read_manifest
from mergevq_platform.codes.stream import CodeStream
from mergevq_platform.codes.tokenizing import tokenize

__all__ = ["CodeManifest", "CodeSet", "CodeStream", "Codes", "open_codes", "read_manifest", "tokenize"]
