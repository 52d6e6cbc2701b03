"""The console command `mergevq`, and `python -m mergevq_platform`.

Imports the standard library alone: the model library installs without Ray and MLflow, and the command then says so in one line.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Modules of the extra `platform`, by the names that they are imported by.
PLATFORM_MODULES = (
    "ray",
    "mlflow",
    "pyarrow",
    "matplotlib",
    "plotly",
    "rich",
    "psutil",
    "packaging",
    "optuna",
    "sklearn",
)


def main() -> None:
    """Run one verb and exit with its status; status 2 and one line where the extra `platform` is not installed."""
    missing = missing_modules()
    if missing:
        print(
            f"mergevq: the command line needs {', '.join(missing)}, not installed here: "
            "pip install 'mergevq[platform]' (the library alone works: `import mergevq`)",
            file=sys.stderr,
        )
        sys.exit(2)
    from mergevq_platform.cli import main as run_verb

    run_verb()


def missing_modules() -> list[str]:
    """Modules of the extra `platform` that are not installed."""
    found = {name: find_spec(name) for name in PLATFORM_MODULES}
    # A folder that happens to have a module's name is a namespace: it has no origin.
    return [name for name, spec in found.items() if spec is None or spec.origin is None]


if __name__ == "__main__":
    main()
