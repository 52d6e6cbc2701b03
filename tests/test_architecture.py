"""The house's directions: who may import whom, and the folder named like a standard module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = sorted((ROOT / "mergevq").rglob("*.py"))
PLATFORM = sorted((ROOT / "platform" / "mergevq_platform").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").rglob("*.py"))
SWEEPS = sorted((ROOT / "sweeps").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names and dotted modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_rooms_are_not_empty() -> None:
    assert len(MODEL) > 10
    assert len(PLATFORM) > 10
    assert JOBS


@pytest.mark.parametrize("path", MODEL, ids=name)
def test_the_model_knows_no_cluster_tracking_command_line_or_environment(path: Path) -> None:
    forbidden = {"ray", "mlflow", "argparse", "mergevq_platform", "jobs", "sweeps", "pyarrow", "rich"}
    assert not roots(path) & forbidden
    uses = {
        ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
    }
    assert not uses & {"os.environ", "os.getenv"}


@pytest.mark.parametrize("path", PLATFORM, ids=name)
def test_the_platform_imports_no_jobs_and_only_tracking_imports_mlflow(path: Path) -> None:
    assert not roots(path) & {"jobs", "sweeps", "tests"}
    if "tracking" not in path.relative_to(ROOT / "platform" / "mergevq_platform").parts:
        assert "mlflow" not in roots(path)


@pytest.mark.parametrize("path", JOBS + SWEEPS, ids=name)
def test_nobody_imports_jobs_or_sweeps(path: Path) -> None:
    assert not roots(path) & {"jobs", "sweeps", "mlflow"}


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
