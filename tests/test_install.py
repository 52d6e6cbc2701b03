"""Installation: the base is the model library, the extra `platform` the command; the lock names public packages alone."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mergevq_platform.__main__ import PLATFORM_MODULES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
PLATFORM = [Requirement(text) for text in PROJECT["optional-dependencies"]["platform"]]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def without(modules: tuple[str, ...], script: str) -> subprocess.CompletedProcess[str]:
    """A Python script where `modules` are not installed."""
    blocked = f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_the_base_holds_every_library_that_the_model_imports() -> None:
    imported: set[str] = set()
    for path in (ROOT / "mergevq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    distributions = importlib.metadata.packages_distributions()
    # Triton comes with PyTorch's CUDA builds, and kernels are imported where there is a GPU alone.
    others = imported - set(sys.stdlib_module_names) - {"mergevq", "triton"}
    needed = {canonicalize_name(distributions[name][0]) for name in others}
    assert needed == {canonicalize_name(requirement.name) for requirement in BASE}


def test_the_command_asks_for_every_package_of_the_extra() -> None:
    distributions = importlib.metadata.packages_distributions()
    asked = [{canonicalize_name(owner) for owner in distributions[name]} for name in PLATFORM_MODULES]
    needed = {canonicalize_name(requirement.name) for requirement in PLATFORM}
    assert all(owners & needed for owners in asked)
    assert needed <= set().union(*asked)


def test_the_library_makes_a_tokenizer_where_the_extra_is_absent() -> None:
    done = without(PLATFORM_MODULES, "import mergevq\nprint(type(mergevq.create('tiny_gr_32')).__name__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "MergeVQ"


def test_the_command_says_in_one_line_what_is_missing_and_how_to_install_it() -> None:
    script = "sys.argv = ['mergevq', 'train', 'demo']\nfrom mergevq_platform.__main__ import main\nmain()"
    done = without(("ray", "mlflow"), script)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mergevq: the command line needs ray, mlflow, not installed here")
    assert "pip install 'mergevq[platform]'" in line


def test_the_command_is_the_entry_that_checks_the_extra() -> None:
    assert PROJECT["scripts"]["mergevq"] == "mergevq_platform.__main__:main"
    helped = subprocess.run(
        [sys.executable, "-m", "mergevq_platform", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert helped.returncode == 0, helped.stderr
    assert "VERB" in helped.stdout


def test_the_lock_satisfies_every_requirement() -> None:
    versions: dict[str, list[Version]] = {}
    for package in LOCK:
        versions.setdefault(package["name"], []).append(Version(package.get("version", "0")))
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["platform"], *extras["dev"]]):
        if requirement.name == PROJECT["name"]:
            continue
        locked = versions[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in locked), str(requirement)


def test_the_lock_lists_the_requirements_of_pyproject() -> None:
    (ours,) = (package for package in LOCK if package["name"] == PROJECT["name"])
    told = {
        (entry["name"], entry.get("specifier", ""), entry.get("marker", ""))
        for entry in ours["metadata"]["requires-dist"]
    }
    wanted = {(canonicalize_name(r.name), str(r.specifier), "") for r in BASE}
    for extra, texts in PROJECT["optional-dependencies"].items():
        for requirement in map(Requirement, texts):
            if extra == "dev" and requirement.name == PROJECT["name"]:
                continue
            wanted.add(
                (canonicalize_name(requirement.name), str(requirement.specifier), f"extra == '{extra}'")
            )
    told = {entry for entry in told if entry[0] != PROJECT["name"]}
    assert wanted == told, "uv.lock is older than pyproject.toml: run `make lock`"


def test_the_lock_names_the_public_index_and_no_path() -> None:
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r'registry = "([^"]+)"', text)) == {"https://pypi.org/simple"}
    assert set(re.findall(r'url = "(https?://[^/]+)', text)) == {"https://files.pythonhosted.org"}
    assert "file:" not in text
    assert not re.findall(r"\b(?:path|directory) = ", text)


def test_the_constraints_for_pip_are_the_locked_versions() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / ".ci" / "constraints.py"], capture_output=True, text=True, check=True
    ).stdout
    lines = [Requirement(line) for line in printed.splitlines()]
    told = {(canonicalize_name(r.name), str(r.specifier).removeprefix("==")) for r in lines}
    assert told == {(p["name"], p["version"]) for p in LOCK if "registry" in p["source"]}
