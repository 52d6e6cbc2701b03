#!/usr/bin/env bash
# Optuna 4.9.0 and 5.0.0: TPESampler(seed=0) with all else left to its defaults proposes other points on the same space, history
# and seed, because 5 models parameters together (multivariate) where 4 did not. A sweep that is resumed after an upgrade goes on
# as another search. With multivariate=False written out both propose the same; with multivariate=True they part after a few trials.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
cat >"$place/ask.py" <<'PY'
import json
import sys
import warnings

import optuna

warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)
points = {}
for name, settings in (("defaults", {}), ("independent", {"multivariate": False}), ("joint", {"multivariate": True})):
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5, **settings))
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1) + trial.suggest_float("b", 1e-5, 1e-1, log=True), n_trials=14)
    points[name] = [round(trial.params["a"], 9) for trial in study.trials]
json.dump({"version": optuna.__version__, **points}, sys.stdout)
PY
for package in optuna==4.9.0 optuna==5.0.0; do
    python3 -m venv "$place/$package"
    "$place/$package/bin/pip" install --quiet "$package" numpy
    "$place/$package/bin/python" "$place/ask.py" >"$place/$package.json"
done
python3 - "$place"/optuna==4.9.0.json "$place"/optuna==5.0.0.json <<'PY'
import json
import sys

old, new = (json.load(open(path)) for path in sys.argv[1:])
same = {name: sum(a == b for a, b in zip(old[name], new[name])) for name in ("defaults", "independent", "joint")}
print(f"of 14 points equal in optuna {old['version']} and {new['version']}: {same}")
assert same["defaults"] < 14, "changed: the defaults agree"
assert same["independent"] == 14
assert same["joint"] < 14, "changed: the joint models agree"
PY
