"""WebDataset tars: members that share a key are one sample; its class is in a .cls member, or in a field of its .json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from mergevq.errors import InputError
from mergevq_platform.data.parquet.columns import NO_LABELS
from mergevq_platform.data.sources.archives import Member
from mergevq_platform.data.sources.choices import SourceImage, SourceImages
from mergevq_platform.data.sources.image_names import same_name
from mergevq_platform.data.sources.labels_table import LABEL_NAMES

BESIDE_IMAGES = {"cls", "json", "txt", "text", "caption", "npy", "npz", "pth", "pt", "pyd"}
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")

Sample = dict[str, Member]  # by field


def key_and_field(name: str) -> tuple[str, str]:
    """("a/x0", "v2.jpg") of a/x0.v2.jpg: a key ends at the first dot after the folder."""
    path = PurePosixPath(name)
    key, _, rest = path.name.partition(".")
    return str(path.with_name(key)) if key else name, rest.lower()


def says_webdataset(members: Iterable[Member]) -> bool:
    """Whether a member shares a key with an image and has a field that only WebDataset puts beside one."""
    images, others = set(), set()
    for member in members:
        key, field = key_and_field(member.name)
        if member.image:
            images.add((member.where, key))
        elif field.rpartition(".")[2] in BESIDE_IMAGES:
            others.add((member.where, key))
    return bool(images & others)


def samples(members: Sequence[Member]) -> Iterator[tuple[str, Sample]]:
    """The samples of an archive with their keys. Raises `InputError` where two members are one field of a sample."""
    found: dict[str, Sample] = {}
    for member in members:
        key, field = key_and_field(member.name)
        other = found.setdefault(key, {}).setdefault(field, member)
        if other is not member and (member.image or field.rpartition(".")[2] in ("cls", "json")):
            raise InputError(
                f"{other.whole_name} and {member.whole_name} are both '.{field}' of one sample: keep one of them"
            )
    yield from found.items()


def sample_images(
    members: Sequence[Member], column: str | None, collected: SourceImages
) -> Iterator[SourceImage]:
    """The images of one archive with their classes; what has none, or no image, is counted.

    `column` is the field of the classes in the .json members; none, or "cls": the .cls members are. Raises `InputError` for a
    sample of several images.
    """
    looked = column is not None
    for key, sample in samples(members):
        images = {field: member for field, member in sample.items() if member.image}
        where = next(iter(sample.values())).where
        if not images:
            for field, member in sample.items():
                collected.left_out.add(
                    f".{field.rpartition('.')[2]} members without an image", member.whole_name
                )
            continue
        member = _image(key, images)
        text = _class(sample, column)
        fields = set() if looked else _label_fields(sample)
        looked = True
        if fields:
            collected.notes.append(
                (
                    "labels",
                    f"{where}: .json members hold {' and '.join(map(repr, sorted(fields)))}, which is not read: "
                    f"--label-column {min(fields)} does",
                )
            )
        for field, other in sample.items():
            read = other is member or (column in (None, "cls") and field.rpartition(".")[2] == "cls")
            if not read and not (column and field.rpartition(".")[2] == "json"):
                collected.left_out.by_ending(other.whole_name)
        yield SourceImage(
            (), member.whole_name, member.name, member.file, member.offset, member.size, True, text
        )


def are_numbers(texts: Iterable[str | None]) -> bool:
    """Whether all classes that there are are whole numbers from 0."""
    return all(text is None or text.isdecimal() for text in texts)


def _image(key: str, images: Sample) -> Member:
    plain = {field: member for field, member in images.items() if "." not in field}
    candidates = plain or images
    if len(candidates) > 1:
        first, second = sorted(member.whole_name for member in candidates.values())[:2]
        raise InputError(
            f"{first} and {second} are images of one sample '{key}': keep one of them, or unpack the archive"
        )
    return next(iter(candidates.values()))


def _class(sample: Sample, column: str | None) -> str | None:
    if column == NO_LABELS:
        return None
    if column in (None, "cls"):
        member = next((m for field, m in sample.items() if field.rpartition(".")[2] == "cls"), None)
        return _text(member.read(), member) if member else None
    member = next((m for field, m in sample.items() if field.rpartition(".")[2] == "json"), None)
    value = _json(member).get(column) if member else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return None if value is None or value < 0 else str(value)
    if isinstance(value, str):
        return _not_negative(same_name(value.strip()))
    assert member is not None
    raise InputError(f"{member.whole_name}: '{column}' is {value!r:.40}: a class is a whole number or a name")


def _text(data: bytes, member: Member) -> str | None:
    try:
        return _not_negative(same_name(data.decode().strip()))
    except UnicodeDecodeError:
        raise InputError(f"{member.whole_name} is not UTF-8: a class is a whole number or a name") from None


def _not_negative(text: str) -> str | None:
    if match := _WHOLE_NUMBER.fullmatch(text):
        return str(int(match[1])) if int(match[1]) >= 0 else None
    return text or None


def _json(member: Member) -> dict[str, object]:
    try:
        tree = json.loads(member.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{member.whole_name} is not JSON ({error}): correct it") from None
    return tree if isinstance(tree, dict) else {}


def _label_fields(sample: Sample) -> set[str]:
    member = next((m for field, m in sample.items() if field.rpartition(".")[2] == "json"), None)
    if member is None or any(field.rpartition(".")[2] == "cls" for field in sample):
        return set()
    try:
        tree = _json(member)
    except InputError:
        return set()
    return {
        name
        for name, value in tree.items()
        if name.lower() in {*LABEL_NAMES, "cls"} and isinstance(value, int | str) and value != ""
    }
