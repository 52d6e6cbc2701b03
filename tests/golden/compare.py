"""Two recordings side by side: everything exactly, or, of different machines, exactly what is exact everywhere."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

EARLY = 1  # steps of a training whose floats another machine must reach: each amplifies the rounding of those before
ROUGH = re.compile("bfloat16")  # trainings whose first step already depends on how a machine rounds
TRAINED = "trained_here"  # below this key other machines share names, texts and integers, but no float
FEW = 0.1  # of integers that depend on rounding, the share that may differ on another machine
PROPOSED = "proposed"  # trials that a sweep's model chose: where two candidates nearly tie, rounding decides
# Of floats on another machine, by key: (relative, absolute). What counts images moves by whole images.
TOLERANCES = (
    (
        re.compile(r"top1|knn_|majority|usage|recovery_accuracy|recovery_baseline|probe_C|\.head$"),
        (0.0, 30.0),
    ),
    (re.compile(r"accuracy|precision|recall|changed_fraction"), (0.0, 0.3)),
    (re.compile(r"\.norms\["), (0.25, 0.02)),
    (re.compile(r""), (0.05, 0.02)),
)


def read(directory: Path, name: str) -> Any:
    """One file of a recording."""
    return json.loads((directory / f"{name}.json").read_text())


def write(directory: Path, name: str, tree: Any) -> None:
    """One file of a recording: a line for every second key, so that a change is seen where it is."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(str(k))}: {_text(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(str(key))}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(str(key))}: {_text(value)}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def differences(recorded: Any, found: Any, *, same_machine: bool, path: str = "") -> list[str]:
    """What differs, a line each with its path; empty if nothing does that should not."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        if list(recorded) != list(found) and (same_machine or set(recorded) != set(found)):
            lost, new = [k for k in recorded if k not in found], [k for k in found if k not in recorded]
            return [f"{path}: keys differ (lost {lost}, new {new}, or in another order)"]
        lines = []
        for key, value in recorded.items():
            below = f"{path}.{key}" if path else key
            if key == "here" and not same_machine:
                continue
            if not same_machine and ROUGH.search(key):
                value, other = _without_floats(value), _without_floats(found[key])
                lines += differences(value, other, same_machine=False, path=below)
                continue
            if not same_machine and key in ("values", "gradients", TRAINED):
                steps = recorded.get("steps", range(1, len(value) + 1))
                value = _early(value, steps, key)
                other = _early(found[key], found.get("steps", steps), key)
                lines += differences(value, other, same_machine=False, path=below)
                continue
            if key == PROPOSED and not same_machine:
                lines += _mostly_proposed(value, found[key], below)
            elif key == "mostly":
                lines += _mostly(value, found[key], same_machine, below)
            else:
                lines += differences(value, found[key], same_machine=same_machine, path=below)
        return lines
    if isinstance(recorded, list) and isinstance(found, list):
        if len(recorded) != len(found):
            return [f"{path}: {len(recorded)} recorded, {len(found)} found"]
        pairs = zip(recorded, found, strict=True)
        return [
            line
            for index, (one, other) in enumerate(pairs)
            for line in differences(one, other, same_machine=same_machine, path=f"{path}[{index}]")
        ]
    if type(recorded) is float and type(found) is float and not same_machine:
        relative, absolute = next(limits for pattern, limits in TOLERANCES if pattern.search(path))
        if math.isclose(recorded, found, rel_tol=relative, abs_tol=absolute):
            return []
    both_nan = recorded != recorded and found != found
    if type(recorded) is type(found) and (recorded == found or both_nan):
        return []
    return [f"{path}: recorded {_short(recorded)}, found {_short(found)}"]


def _early(value: Any, steps: Any, key: str) -> Any:
    """The same without the floats that another machine cannot reach."""
    if key == TRAINED:
        return _without_floats(value)
    numbered = zip(value, steps, strict=False)
    return [one if step <= EARLY else _without_floats(one) for one, step in numbered]


def _without_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_floats(inner) for key, inner in value.items() if key not in ("here", "mostly")}
    if isinstance(value, list):
        return [_without_floats(inner) for inner in value]
    return "a float" if isinstance(value, float) else value


def _mostly(recorded: list[int], found: list[int], same_machine: bool, path: str) -> list[str]:
    if len(recorded) != len(found):
        return [f"{path}: {len(recorded)} recorded, {len(found)} found"]
    differ = sum(one != other for one, other in zip(recorded, found, strict=True))
    allowed = 0 if same_machine else FEW * len(recorded)
    return [f"{path}: {differ} of {len(recorded)} differ"] if differ > allowed else []


def _mostly_proposed(recorded: dict[str, Any], found: dict[str, Any], path: str) -> list[str]:
    """What differs, where more than a few of a sweep's proposals do."""
    if set(recorded) != set(found):
        return [f"{path}: {sorted(recorded)} recorded, {sorted(found)} found"]
    lines = []
    for name, proposals in recorded.items():
        below = f"{path}.{name}"
        if len(proposals) != len(found[name]):
            lines.append(f"{below}: {len(proposals)} recorded, {len(found[name])} found")
            continue
        each = [
            differences(one, other, same_machine=False, path=f"{below}[{index}]")
            for index, (one, other) in enumerate(zip(proposals, found[name], strict=True))
        ]
        if sum(map(bool, each)) > FEW * len(proposals):
            lines += [line for some in each for line in some]
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def made(same_machine: bool, directory: Path) -> str:
    """Which comparison was made, in words."""
    against = f"against {directory}"
    if same_machine:
        return f"compared bit for bit {against}, recorded on a machine like this"
    return f"recorded on another machine: integers, names and protocols compared exactly, floats to tolerance, {against}"
