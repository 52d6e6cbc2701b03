"""Prints the versions of uv.lock as constraints for pip, where uv is not installed: python .ci/constraints.py > FILE."""

import tomllib
from pathlib import Path

LOCK = Path(__file__).parents[1] / "uv.lock"


def constraints(lock: dict) -> list[str]:
    """A line for each locked package; of one that is locked at several versions a line for each, with its marker."""
    lines = []
    for package in lock["package"]:
        if "registry" not in package["source"]:
            continue  # this project itself
        markers = " or ".join(f"({marker})" for marker in package.get("resolution-markers", []))
        lines.append(f"{package['name']}=={package['version']}" + (f" ; {markers}" if markers else ""))
    return lines


if __name__ == "__main__":
    print("\n".join(constraints(tomllib.loads(LOCK.read_text()))))
