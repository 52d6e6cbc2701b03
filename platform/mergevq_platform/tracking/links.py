"""Addresses inside MLflow's interface that show what one came for."""

from __future__ import annotations

_TRAINING = "workflowType=machine_learning"


def curve_link(base_url: str, experiment_id: str, run_id: str | None = None) -> str:
    """The page that shows the curves at once: of all runs of an experiment side by side, or of one run.

    The plain address of an experiment opens on MLflow's page for language models ("0 traces").
    """
    page = f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
    if run_id is not None:
        return f"{page}/{run_id}/model-metrics?{_TRAINING}"
    return f"{page}?{_TRAINING}&compareRunsMode=CHART"
