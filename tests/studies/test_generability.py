"""The study of what metrics tell about generators: it runs on a bare machine, and its correlations are Spearman's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from generability_summary import GENERATED, METRICS, correlation, draw, markdown, read_rows, spearman

ROOT = Path(__file__).parents[2]
BARE = """
import runpy, sys
for name in ("ray", "mlflow", "pyarrow", "yaml", "rich", "plotly", "PIL.Image"): sys.modules[name] = None
sys.path.insert(0, "jobs/studies")
sys.argv = ["generability.py", *sys.argv[1:]]
runpy.run_path("jobs/studies/generability.py", run_name="__main__")
"""


def rows(names: int, keeps: tuple[int, ...], noise: float) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    found = []
    for keep in keeps:
        for number in range(names):
            value = number + keep
            row = {"tokenizer": f"t{number}", "keep": keep, "psnr": 20.0, GENERATED: value, "seeds": [value]}
            found.append(row | {key: value + noise * random.normal() for key in METRICS})
    return found


@pytest.mark.slow
def test_the_study_runs_where_there_is_neither_ray_nor_mlflow_nor_parquet_nor_yaml(tmp_path: Path) -> None:
    arguments = [
        "--out",
        str(tmp_path),
        "--tiny",
        "--tokenizers",
        "ten_bits",
        "--counts",
        "16",
        "--seeds",
        "1",
    ]
    command = [sys.executable, "-W", "ignore", "-c", BARE, *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "platform:.", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "4 cells done, 0 failed, 0 left" in done.stdout
    (row,) = read_rows(tmp_path)
    assert (row["tokenizer"], row["keep"]) == ("ten_bits", 16)
    assert 0 < row["ar_probe_v1_bits"] < 16 * 10 * 1.5
    assert all(np.isfinite(row[key]) and row[key] > 0 for key in [GENERATED, *METRICS])


@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_is_spearmans_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.integers(6, size=(2, 15)).astype(float)
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman(x, np.ones(15)))


def test_a_metric_that_ranks_perfectly_is_certain_and_one_of_noise_is_not() -> None:
    perfect = correlation(rows(5, (16, 36, 64), 0.0), "rfd_random_v1")
    assert perfect[:3] == pytest.approx((1, 1, 1))
    assert perfect.within == pytest.approx(1)
    assert max(perfect.p_pooled, perfect.p_within) < 0.001
    noise = correlation(rows(5, (16, 36, 64), 1000.0), "rfd_random_v1")
    assert noise.low < 0 < noise.high
    assert min(noise.p_pooled, noise.p_within) > 0.05


def test_kept_counts_alone_do_not_make_a_correlation_within_them() -> None:
    found = rows(5, (16, 36, 64), 0.0)
    for row in found:
        row["rfd_random_v1"] = row["keep"] + [0.4, 0.1, 0.0, 0.3, 0.2][int(row["tokenizer"][1:])]
    of_counts = correlation(found, "rfd_random_v1")
    assert of_counts.pooled > 0.8
    assert of_counts.within == pytest.approx(-0.2)
    assert of_counts.p_within > 0.05


def test_only_whole_rows_are_summarised_and_seeds_are_averaged(tmp_path: Path) -> None:
    def store(name: str, result: dict[str, Any]) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps({"settings": {}, "result": result}))

    store("tokenizer_t", {"tokenizer": "t"})
    for keep in (16, 36):
        for seed, value in enumerate((1.0, 2.0)):
            store(f"g{keep}{seed}", {"tokenizer": "t", "keep": keep, "seed": seed, GENERATED: value})
    store("m16", {"tokenizer": "t", "keep": 16, "psnr": 20.0} | dict.fromkeys(METRICS, 1.0))
    (row,) = read_rows(tmp_path)
    assert (row["keep"], row[GENERATED]) == (16, 1.5)


def test_table_and_figure_hold_every_row(tmp_path: Path) -> None:
    found = rows(5, (16, 36, 64), 1.0)
    lines = markdown(found).splitlines()
    assert sum(line.startswith(tuple(f"| t{number} " for number in range(5))) for line in lines) == 15
    assert sum("[" in line and line.startswith("|") for line in lines) == len(METRICS) + 1
    draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
