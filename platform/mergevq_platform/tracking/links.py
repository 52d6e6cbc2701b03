"""Addresses inside MLflow's interface that show what one came for."""

from __future__ import annotations

from urllib.parse import quote

_TRAINING = "workflowType=machine_learning"


def curve_link(
    base_url: str, experiment_id: str, run_id: str | None = None, *, view: str | None = None
) -> str:
    """The page that shows the curves at once: of all runs of an experiment side by side, or of one run.

    With `view` it opens on that shared view of the experiment: only for one that is there, since MLflow's page turns away
    from a view that it does not find. The plain address of an experiment opens on the page for language models ("0 traces").
    """
    page = f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
    if view is not None:
        return f"{page}?viewStateShareKey={quote(view)}&{_TRAINING}&compareRunsMode=CHART"
    if run_id is not None:
        return f"{page}/{run_id}/model-metrics?{_TRAINING}"
    return f"{page}?{_TRAINING}&compareRunsMode=CHART"
