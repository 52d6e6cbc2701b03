"""The documentation: its links lead somewhere, its commands exist, its generated pages are current."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import mergevq
from mergevq.config import to_tree
from mergevq_platform import cli, recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "docs/**/*.ipynb",
        "jobs/**/*.md",
        "findings/*.md",
        "tests/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?:[^][]|\[[^]]*\])*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = ("mergevq", "platform", "jobs", "sweeps", "tests", "docs", "findings")
PLACEHOLDER = re.compile(r"^[A-Z_]+$")  # RUN, NAME, DIR: what a reader puts there


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text(path: Path) -> str:
    """A page as Markdown: of a notebook its Markdown cells, and the shell commands of its code cells as a block each."""
    if path.suffix != ".ipynb":
        return path.read_text()
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif shell := re.findall(r"^!\s*(mergevq .*)$", source, re.MULTILINE):
            parts.append("\n".join(["```bash", *shell, "```"]))
    return "\n\n".join(parts) + "\n"


def prose(path: Path) -> str:
    """A page without its blocks of code; lines joined, because links and code may be wrapped."""
    return FENCE.sub("", text(path)).replace("\n", " ")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text(path)), re.MULTILINE):
        kept = [c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN"]
        anchor = "".join(kept).strip().replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return frozenset(
        f"{anchor}-{n}" if n else anchor for anchor, most in found.items() for n in range(most + 1)
    )


def script(path: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def commands(path: Path) -> Iterator[str]:
    """Commands of a page's shell blocks, continued lines joined, comments left out."""
    for language, block in FENCE.findall(text(path)):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield shlex.join(words)


ALL_COMMANDS = [(page, command) for page in PAGES for command in commands(page)]
INLINE = sorted(
    {
        (page, code)
        for page in PAGES
        for code in CODE.findall(prose(page))
        if re.match(r"(mergevq|make|python) [a-z]", code)
    }
)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for links in LINK.findall(prose(page)):
        link = links[0] or links[1]
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    for code in CODE.findall(prose(page)):
        if code.split("/")[0] in FOLDERS and "/" in code and re.fullmatch(r"[\w./-]+", code):
            if "NAME" in code:
                continue
            found = [base / code for base in (ROOT, page.parent) if (base / code).exists()]
            assert found, f"{name(page)} names {code}, which does not exist"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (path for path in PAGES if path.is_relative_to(ROOT / "docs")):
        linked = f"({page.relative_to(ROOT / 'docs')})"
        assert page.name == "README.md" or linked in index, f"docs/README.md does not list {linked}"


def test_the_readme_is_short_and_shows_the_method_and_a_curve() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "](docs/method.svg)" in text
    assert "](docs/demo_tradeoff.png)" in text
    assert "](docs/mlflow_view.png)" in text


def test_the_tree_of_the_readme_exists() -> None:
    (tree,) = (block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if not language)
    folder = ROOT
    for line in tree.splitlines():
        told = line[:30].strip() if len(line) > 30 and line[28:30] == "  " else line
        words = re.split(r"\s{2,}", line.strip())[0].split() if told else []
        names = [word for word in words if word.endswith(("/", ".py"))]
        base = folder if line.startswith("  ") else ROOT
        for named in names:
            assert (base / named).exists(), f"README's tree names {named}, which is not in {base}"
        if not line.startswith("  "):
            folder = ROOT / names[0]


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS, ids=lambda value: str(value)[-60:])
def test_commands_of_shell_blocks_are_understood(page: Path, command: str) -> None:
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of this command
        words = words[1:]
    if words[0] == "make":
        for target in words[1:]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"no target {target}"
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "mergevq":
        understood(words[1:])


@pytest.mark.parametrize(("page", "code"), INLINE, ids=lambda value: str(value)[-60:])
def test_commands_in_sentences_are_understood(page: Path, code: str) -> None:
    words = code.split()
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"no target {words[1]}"
    elif words[0] == "mergevq":
        known(words[1:])
    elif words[1] != "-m":
        assert (ROOT / words[1]).is_file()


def understood(words: list[str]) -> None:
    """Parse a verb's words as the command line does; the recipe and the keys that it changes exist."""
    if "--help" in words:
        known(words)
        return
    said = io.StringIO()
    options = None
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        options = cli.parse(words)
    assert options, said.getvalue()
    if words[0] == "submit" and "--" in words:
        understood(words[words.index("--") + 1 :])
    named = getattr(options, "recipe", None)
    if words[0] in ("train", "recipes") and named in recipe.packaged_recipes():
        recipe.load(named, options.overrides)
    sweep = getattr(options, "sweep", None)
    if sweep and sweep.endswith(".py"):
        assert (ROOT / sweep).is_file()


def known(words: list[str]) -> None:
    """The verb exists, the verb below it, and the options that are named."""
    level: list[str] = []
    for word in words:
        if word.startswith("-") or PLACEHOLDER.match(word) or "=" in word or "/" in word or "." in word:
            break
        helped = help_of(*level)
        if "positional arguments:\n  WHAT" not in helped and level:
            break
        assert re.search(rf"^    {re.escape(word)}\b", helped, re.MULTILINE), (
            f"no verb {' '.join([*level, word])}"
        )
        level.append(word)
    for option in (word for word in words if word.startswith("--") and word != "--"):
        assert re.search(rf"{option}\b", help_of(*level)), f"{' '.join(level)} has no {option}"


@cache
def help_of(*level: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.parse([*level, "--help"])
    return said.getvalue()


def test_the_reference_of_recipe_keys_is_current() -> None:
    pages = script("docs/recipe_keys.py")
    assert pages.PAGE.read_text() == pages.page(), "run python docs/recipe_keys.py"


def test_every_key_of_the_reference_has_a_meaning_and_none_is_spare() -> None:
    pages = script("docs/recipe_keys.py")
    rows = [row for table in pages.tables() for row in table.rows]
    assert len(rows) > 200
    assert not [row for row in rows if not row[-1]], "a comment beside the field, or a word in EVERYWHERE"
    spare = {key: said for key, said in pages.EVERYWHERE.items() if said not in {row[-1] for row in rows}}
    assert not spare


def test_the_reference_holds_every_key_of_every_packaged_recipe() -> None:
    pages = script("docs/recipe_keys.py")
    keys = {(path, row[0]) for table in pages.tables() for path in table.paths for row in table.rows}
    kinds = {path for table in pages.tables() if table.kind for path in table.paths}

    def check(tree: dict, path: str) -> None:
        for key, value in tree.items():
            full = f"{path}.{key}".lstrip(".")
            assert (path, key) in keys or (key == "kind" and path in kinds), full
            if isinstance(value, dict):
                check(value, full)

    for packaged in recipe.packaged_recipes():
        check(recipe.read(packaged), "")
    check(to_tree(recipe.load("demo")), "")


def test_the_drawing_of_the_method_is_what_its_script_draws() -> None:
    drawn = script("docs/method.py")
    assert drawn.TARGET.read_text() == drawn.drawing()


def test_the_example_of_the_library_runs(tmp_path: Path) -> None:
    (example,) = (
        block
        for language, block in FENCE.findall((ROOT / "docs" / "library.md").read_text())
        if language == "python"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tokenizer" / "config.json").is_file()


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert mergevq.__version__ == version == citation["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["cff-version"] == "1.2.0"
    assert citation["references"][0]["url"].endswith("2504.00999")
