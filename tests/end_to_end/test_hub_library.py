"""A tokenizer that was pushed to the Hub loads where the model library alone is installed, and reconstructs the same images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hub_server
import mergevq
from hub_server import Hub
from mergevq_platform.__main__ import PLATFORM_MODULES
from mergevq_platform.operations.publishing.push import push

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import numpy, torch
import mergevq
tokenizer = mergevq.load("hf://me/tok")
images = torch.from_numpy(numpy.load("images.npy"))
numpy.save("reconstructed.npy", tokenizer.decode(tokenizer.encode(images, keep=9)).detach().numpy())
print(mergevq.__file__, *sorted(name for name in sys.modules if name in {modules!r} and sys.modules[name]))
"""


@pytest.fixture
def pushed(
    hub: Hub, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """The images of a folder as the pushed tokenizer reconstructs them here; beside them `images.npy`."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    push(str(tokenizer_directory), "hf://me/tok", home=tmp_path / "home")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    np.save(tmp_path / "images.npy", images.numpy())
    tokenizer = mergevq.load(tokenizer_directory)
    return tokenizer.decode(tokenizer.encode(images, keep=9)).detach().numpy()


def reconstructed(
    python: str, script: str, folder: Path, hub: Hub, **variables: str
) -> tuple[str, np.ndarray]:
    """What a new process without a token prints, and its reconstructions."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **variables}
    environment |= hub_server.environment(hub.url, folder / "its-cache")
    done = subprocess.run(
        [python, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, np.load(folder / "reconstructed.npy")


def test_a_pushed_tokenizer_reconstructs_the_same_where_the_extra_is_absent(
    hub: Hub, pushed: np.ndarray, tmp_path: Path
) -> None:
    script = f"import sys\nfor name in {PLATFORM_MODULES!r}: sys.modules[name] = None\n" + SCRIPT
    said, found = reconstructed(
        sys.executable,
        script.replace("{modules!r}", repr(PLATFORM_MODULES)),
        tmp_path,
        hub,
        PYTHONPATH=str(ROOT),
    )
    assert said.split()[1:] == []
    assert np.allclose(found, pushed, atol=1e-5)


@pytest.mark.long
@pytest.mark.timeout(3600)  # gigabytes are installed
def test_a_pushed_tokenizer_reconstructs_the_same_in_a_fresh_environment(
    hub: Hub, pushed: np.ndarray, tmp_path: Path
) -> None:
    """The wheel and what it asks for, by pip, in the versions of the lock; nothing of the extra `platform` is there."""

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheels", str(ROOT))
    (wheel,) = (tmp_path / "wheels").glob("mergevq-*.whl")
    (tmp_path / "constraints.txt").write_text(run(sys.executable, str(ROOT / ".ci" / "constraints.py")))
    run(sys.executable, "-m", "venv", "fresh")
    python = str(tmp_path / "fresh" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", str(wheel))
    installed = {line.split("==")[0].lower() for line in run(python, "-m", "pip", "freeze").splitlines()}
    assert "huggingface-hub" in installed or "huggingface_hub" in installed
    assert not installed & {
        "ray",
        "mlflow",
        "pyarrow",
        "optuna",
        "matplotlib",
        "rich-argparse",
        "scikit-learn",
    }
    said, found = reconstructed(python, SCRIPT.replace("{modules!r}", repr(PLATFORM_MODULES)), tmp_path, hub)
    print(f"\n{said}{len(installed)} packages: {', '.join(sorted(installed))}")
    assert str(tmp_path / "fresh") in said.split()[0]
    assert not {"ray", "mlflow", "pyarrow"} & set(said.split()[1:])
    difference = float(np.abs(found - pushed).max())
    print(f"largest difference of the reconstructions: {difference:g}")
    assert difference <= 1e-5
