#!/usr/bin/env bash
# MLflow 3.17.2 with an SQL store: a metric of value inf (the PSNR of equal images) is accepted and comes back as
# 1.7976931348623157e+308, an ordinary number that charts and comparisons take for a measurement; -inf likewise. NaN comes back as NaN.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet mlflow==3.17.2
cd "$place"
MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true "$place/venv/bin/python" - <<'PY' 2>/dev/null
import math

import mlflow
from mlflow import MlflowClient

client = MlflowClient("sqlite:///store.db")
run = client.create_run(client.create_experiment("psnr"))
for name, value in (("up", math.inf), ("down", -math.inf), ("none", math.nan)):
    client.log_metric(run.info.run_id, name, value, step=64)
stored = {name: client.get_metric_history(run.info.run_id, name)[0].value for name in ("up", "down", "none")}
print("mlflow", mlflow.__version__, stored)
assert stored["up"] == 1.7976931348623157e308, "changed: inf is no longer stored as the largest double"
assert stored["down"] == -1.7976931348623157e308
assert math.isnan(stored["none"])
PY
