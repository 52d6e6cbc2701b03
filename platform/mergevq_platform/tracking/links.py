"""Addresses inside MLflow's interface that show what one came for."""

from __future__ import annotations


def curve_link(base_url: str, experiment_id: str, run_id: str | None = None) -> str:
    """The page that shows the curves at once: of all runs of an experiment side by side, or of one run.

    The plain address of an experiment opens on MLflow's page for language models ("0 traces").
    """
    base = base_url.rstrip("/")
    if run_id is not None:
        return f"{base}/#/experiments/{experiment_id}/runs/{run_id}/model-metrics"
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def artifact_link(base_url: str, experiment_id: str, run_id: str, path: str) -> str:
    """The page that shows one artifact of a run, such as `curve/tradeoff.png`."""
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}"
