"""The upload of a job, in one folder: our two packages and the files that its command line names.

A staged folder, and not the working directory of whoever submits, is what travels: so that a wheel and a checkout
upload the same tree, that neither data nor runs nor a forgotten dump can go along, and that the packages lie at the top of
the job's working directory, which Ray puts on the path of driver, workers and their subprocesses. (`py_modules` would do
for the packages but not for recipe and sweep files, and would make two uploads of one.)
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mergevq
import mergevq_platform
from mergevq.errors import InputError
from mergevq.paths import PathKind
from mergevq_platform.recipe import packaged_recipes, path_kind

LIMIT_BYTES = 50 * 1024**2
NAMED_PATHS = 5  # of the largest, in the message that refuses an upload
WHY = {"folder": "folders are not uploaded", "file": "of an override's files only weights are uploaded"}
FOREIGN = "given"  # folder of files from outside the working directory


@dataclass(frozen=True)
class Staged:
    """A folder ready to be a job's working directory."""

    directory: Path
    words: list[str]  # the verb's words, with files under the names that they have in the folder
    files: dict[str, int]  # name in the folder -> bytes

    @property
    def bytes(self) -> int:
        """Size of everything, before compression."""
        return sum(self.files.values())

    def described(self) -> str:
        """The upload in one line: the number of our files, others by name."""
        ours = ("mergevq/", "mergevq_platform/")
        code = [name for name in self.files if name.startswith(ours)]
        named = [name for name in self.files if not name.startswith(ours)]
        parts = [f"mergevq itself ({len(code)} files)"] if code else []
        parts += [f"{name} ({size(self.files[name])})" for name in named[:8]]
        if len(named) > 8:
            parts.append(f"{len(named) - 8} more")
        return f"uploading {size(self.bytes)}: {', '.join(parts) or 'nothing'}"


def stage(
    words: Sequence[str],
    directory: Path,
    *,
    packages: bool = True,
    include: Iterable[Path] = (),
    limit_bytes: int = LIMIT_BYTES,
) -> Staged:
    """Fill `directory` with the files that the words of a verb need on another machine.

    A word, or the value of `--option=…`, that names a file is uploaded; so is a relative one of an override `a.b=…` whose
    key names a file of weights (an absolute one is taken for a path of the cluster). `include` names more files and
    folders; where they lie in a git checkout, `.gitignore` is honoured. Raises `InputError` for other files and folders
    of this machine among the words, and for an upload above `limit_bytes`, before anything is copied.
    """
    renamed, named = _named_files(words)
    sources: dict[str, Path] = dict(_package_files()) if packages else {}
    sources |= named
    for path in include:
        sources |= _included(path)
    files = {name: source.stat().st_size for name, source in sorted(sources.items())}
    _refuse_above(limit_bytes, files)
    for name, source in sources.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return Staged(directory, renamed, files)


def _package_files() -> Iterable[tuple[str, Path]]:
    for package in (mergevq, mergevq_platform):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in _files_of(root):
            yield f"{root.name}/{path.relative_to(root).as_posix()}", path
    # A checkout keeps them in jobs/; an installed package finds them inside itself.
    for path in packaged_recipes().values():
        yield f"mergevq_platform/recipes/{path.name}", path


def _named_files(words: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    renamed: list[str] = []
    found: dict[str, Path] = {}
    for index, word in enumerate(words):
        head, equals, value = word.partition("=")
        if not equals or Path(word).is_file():
            head, equals, value = "", "", word
        override = bool(equals) and not head.startswith("-")
        kind = path_kind(head) if override else None
        if override and kind is None:  # a number, or a name that something here may have too
            renamed.append(word)
            continue
        path = Path(value).expanduser()
        uploaded = not override or (kind is PathKind.WEIGHTS and not path.is_absolute())
        if uploaded and path.is_file():
            name = _name(path, found)
            found[name] = path.resolve()
            renamed.append(f"{head}{equals}{name}")
            continue
        # The first word is the verb; a bare word may be a run's or a recipe's name.
        here = path.is_dir() and index > 0 and (bool(equals) or "/" in value)
        if (here or (override and path.is_file())) and not path.is_absolute():
            what = "folder" if here else "file"
            raise InputError(
                f"'{word}': {value} is a {what} of this machine, and {WHY[what]}: name a path or URI that "
                "every node of the cluster sees (files of code go along with --include)"
            )
        renamed.append(word)
    return renamed, found


def _name(path: Path, taken: dict[str, Path]) -> str:
    relative = path if not path.is_absolute() else None
    if relative is None and path.is_relative_to(Path.cwd()):
        relative = path.relative_to(Path.cwd())
    if relative is not None and ".." not in relative.parts:
        return relative.as_posix()
    name, count = f"{FOREIGN}/{path.name}", 1
    while name in taken and taken[name] != path.resolve():
        name, count = f"{FOREIGN}/{count}/{path.name}", count + 1
    return name


def _included(path: Path) -> dict[str, Path]:
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"--include {path}: name a path below the working directory")
    if path.is_file():
        return {path.as_posix(): path.resolve()}
    if not path.is_dir():
        raise InputError(f"--include {path}: no such file or folder")
    return {file.relative_to(Path.cwd()).as_posix(): file for file in _files_of(path.resolve())}


def _files_of(folder: Path) -> list[Path]:
    """The files below a folder: those that git would add where it is in a checkout, else all but compiled ones."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "."],
            cwd=folder,
            capture_output=True,
            timeout=60,
        )
        names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        names = []
    # An installed package may lie inside a checkout that ignores it (.venv): then git lists nothing.
    paths = [folder / name for name in names if name] or list(folder.rglob("*"))
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


def _refuse_above(limit_bytes: int, files: dict[str, int]) -> None:
    total = sum(files.values())
    if total <= limit_bytes:
        return
    largest = sorted(files, key=lambda name: -files[name])[:NAMED_PATHS]
    names = ", ".join(f"{name} ({size(files[name])})" for name in largest)
    raise InputError(
        f"the job would upload {size(total)}, more than {size(limit_bytes)}; largest: {names}. Put large files where "
        "the cluster sees them and name them there by an absolute path, or raise --upload-limit"
    )


def size(count: float) -> str:
    """Bytes for people: 1.2 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
