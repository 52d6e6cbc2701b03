"""The structure: who may import whom, no cycle, one meaning a class name, one package for MLflow, types in evaluation and sweeps."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = sorted((ROOT / "mergevq").rglob("*.py"))
PLATFORM = sorted((ROOT / "platform" / "mergevq_platform").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").rglob("*.py"))
SWEEPS = sorted((ROOT / "sweeps").rglob("*.py"))
DOCS = sorted((ROOT / "docs").rglob("*.py"))
PRODUCT = MODEL + PLATFORM + JOBS + SWEEPS
SHAPELESS = {"utils.py", "util.py", "common.py", "base.py", "helpers.py", "misc.py"}

# How often `Any` may stand for something else than a table of YAML or JSON (`dict[str, Any]`), at most, and why.
ANY = {
    "sweeps/importance.py": (2, "scikit-learn's trees, which have no types"),
}

LONGEST = 60  # lines of a function's body, without its docstring

# Functions that are longer, at most so many lines, and why.
LONG = {
    "platform/mergevq_platform/loop.py: train": (111, "a training step, read from top to bottom"),
}

# Files that may say "picture", how often at most, and why. Elsewhere it is "image".
PICTURE = {
    "platform/mergevq_platform/cli/generation.py": (
        2,
        "a key of generation.json, and the folder of generated images",
    ),
    "platform/mergevq_platform/cli/preflight.py": (1, "the option of before that is still read"),
    "platform/mergevq_platform/data/sources/folder_levels.py": (1, "users' names of folders"),
    "platform/mergevq_platform/evaluation/generator.py": (3, "a key of rows; sentences of stored protocols"),
    "platform/mergevq_platform/evaluation/generator_report.py": (
        6,
        "a key of rows; verdicts that golden files compare",
    ),
    "platform/mergevq_platform/evaluation/images.py": (1, "a kind in stored protocols"),
    "platform/mergevq_platform/evaluation/tokenizer.py": (3, "sentences of stored protocols"),
    "platform/mergevq_platform/meter.py": (1, "a stored metric"),
    "platform/mergevq_platform/operations/planning/measuring.py": (
        2,
        "the key of stored measurements of before",
    ),
    "platform/mergevq_platform/recipe/resolve.py": (1, "the key of recipes of before"),
    "platform/mergevq_platform/sampling/job.py": (
        3,
        "keys of generation.json, and the folder of generated images",
    ),
    "platform/mergevq_platform/storage/checkpoints/state.py": (2, "a key of resume.pt"),
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """Top-level names and dotted modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "platform" else parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """Module → modules of ours that it takes names from, imports within functions and for types included.

    A package counts by its __init__ where a name is taken from it, not where one of its modules is imported.
    """
    files = {module_name(path): path for path in MODEL + PLATFORM + JOBS}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        taken: set[str] = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                taken |= {full if full in files else node.module for full in inner.values()}
        graph[module] = (taken & set(files)) - {module}
    return graph


def test_the_packages_are_not_empty() -> None:
    assert len(MODEL) > 10
    assert len(PLATFORM) > 10
    assert JOBS
    assert SWEEPS


@pytest.mark.parametrize("path", MODEL, ids=name)
def test_the_model_knows_no_cluster_tracking_command_line_or_environment(path: Path) -> None:
    forbidden = {"ray", "mlflow", "argparse", "mergevq_platform", "jobs", "sweeps", "pyarrow", "rich"}
    assert not roots(path) & forbidden
    uses = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert not uses & {"os.environ", "os.getenv"}
    named = {
        alias.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    }
    assert not named & {"environ", "getenv"}


@pytest.mark.parametrize("path", PLATFORM, ids=name)
def test_the_platform_imports_no_jobs_and_only_tracking_imports_mlflow(path: Path) -> None:
    assert not roots(path) & {"jobs", "sweeps", "tests"}
    if "tracking" not in path.relative_to(ROOT / "platform" / "mergevq_platform").parts:
        assert "mlflow" not in roots(path)


@pytest.mark.parametrize("path", JOBS + SWEEPS, ids=name)
def test_nobody_imports_jobs_or_sweeps(path: Path) -> None:
    assert not roots(path) & {"jobs", "sweeps", "mlflow"}


def test_imports_are_absolute_and_file_names_say_something() -> None:
    for path in PRODUCT + DOCS:
        relative = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{name(path)}:{relative[0].lineno} imports relatively"
        assert path.name not in SHAPELESS, f"{name(path)} is called after nothing that it does"


def test_no_import_cycle() -> None:
    graph = import_graph()
    assert "mergevq.merging" in graph["mergevq.tokenizer"], "the graph is empty: this test cannot fail"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("an import cycle: " + " is imported by ".join(error.args[1]))


def test_a_class_name_has_one_meaning_in_the_whole_tree() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in PRODUCT:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{name(path)}:{node.lineno}")
    assert len(places) > 100
    repeated = {found: where for found, where in places.items() if len(where) > 1}
    assert not repeated


def test_images_are_called_images_everywhere_but_in_what_is_stored() -> None:
    kinds = {".py", ".yaml", ".sh", ".md"}
    folders = ("mergevq", "platform", "jobs", "sweeps")
    files = [p for folder in folders for p in sorted((ROOT / folder).rglob("*")) if p.suffix in kinds]
    found = {name(path): path.read_text().lower().count("picture") for path in files}
    assert all(found.get(file) for file in PICTURE), "a file that says it no more is still excused"
    assert not {file: times for file, times in found.items() if times > PICTURE.get(file, (0, ""))[0]}


def untyped(path: Path) -> list[int]:
    """Lines where `Any` stands for something else than the values of a table with text keys."""
    tables = {
        id(node.slice.elts[1])
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) in {"dict", "Mapping", "MutableMapping"}
        and isinstance(node.slice, ast.Tuple)
        and ast.unparse(node.slice.elts[0]) == "str"
    }
    names = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name) and node.id == "Any")
    return sorted(node.lineno for node in names if id(node) not in tables)


def test_any_stands_only_where_a_library_or_a_recipe_forces_it() -> None:
    top = ROOT / "platform" / "mergevq_platform"
    files = [path for package in ("evaluation", "sweeps") for path in sorted((top / package).rglob("*.py"))]
    found = {str(path.relative_to(top)): untyped(path) for path in files}
    assert set(ANY) <= set(found), "a file that is gone is still excused"
    for file, lines in found.items():
        most, why = ANY.get(file, (0, "none"))
        assert len(lines) <= most, (
            f"{file}: Any in lines {lines}, allowed {most} times ({why}): name the types"
        )


def test_functions_are_short_but_for_the_training_loop() -> None:
    found = {}
    for path in PRODUCT:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (lines := (node.end_lineno or 0) - body[0].lineno + 1) > LONGEST:
                    found[f"{name(path)}: {node.name}"] = lines
    assert set(LONG) <= set(found), "a function that is gone or short is still excused"
    assert not {
        function: lines for function, lines in found.items() if lines > LONG.get(function, (LONGEST, ""))[0]
    }


def test_platform_the_folder_does_not_shadow_platform_the_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    script = "import platform, mergevq_platform; print(platform.system(), platform.__file__)"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert str(ROOT) not in answer.stdout


def test_the_model_imports_on_a_machine_without_ray_and_mlflow() -> None:
    script = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'pyarrow', 'rich', 'plotly'): sys.modules[name] = None\n"
        "import mergevq, mergevq.training.tokenizer, mergevq.metrics, mergevq.generation\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
