#!/usr/bin/env bash
# Ray Tune 2.60.0: an experiment that is restored has forgotten the rungs of its ASHA scheduler. What trials reported before the
# interruption is in the experiment's state, but not in the scheduler's: it is taken up as it was pickled when the experiment began.
# A trial that runs after the restore is compared with those after it alone: one that an undisturbed experiment stops at its first
# rung, behind three better ones, trains to its end.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "ray[tune]==2.60.0"
cd "$place"
RAY_USAGE_STATS_ENABLED=0 RAY_AIR_NEW_OUTPUT=0 "$place/venv/bin/python" - <<'PY'
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

LAST = 8


def train(config):
    """Reports eight steps; the worst of four trials fails once where it is told to."""
    failure = Path(config["failure"])
    if config["quality"] == 0 and failure.exists():
        failure.unlink()
        raise RuntimeError("the machine was lost")
    for step in range(1, LAST + 1):
        tune.report({"step": step, "score": config["quality"] + step / 100})


def run(name, fails):
    failure = Path.cwd() / f"{name}.failure"
    if fails:
        failure.touch()
    scheduler = ASHAScheduler(time_attr="step", metric="score", mode="max", max_t=LAST, grace_period=2, reduction_factor=2)
    tuner = tune.Tuner(
        train,
        param_space={"quality": tune.grid_search([3, 2, 1, 0]), "failure": str(failure)},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
        run_config=tune.RunConfig(name=name, storage_path=str(Path.cwd() / "results"), verbose=0),
    )
    results = tuner.fit()
    if fails:
        assert len(results.errors) == 1
        restored = tune.Tuner.restore(str(Path.cwd() / "results" / name), trainable=train, restart_errored=True)
        results = restored.fit()
    assert not results.errors
    return next(result.metrics["step"] for result in results if result.config["quality"] == 0)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
undisturbed, restored = run("undisturbed", False), run("restored", True)
print("ray", ray.__version__, "steps of the worst trial: undisturbed", undisturbed, "after a restore", restored)
assert undisturbed == 2, "changed: ASHA no longer stops it at the first rung"
assert restored == LAST, "changed: the rungs of before the restore are remembered"
PY
