"""Where to look in MLflow, for the store in use."""

from __future__ import annotations

from mergevq_platform.places import places


def where_to_look(experiment: str, run: str | None = None) -> str:
    """The address that shows an experiment's curves (or one run's), and the command that serves it."""
    from mergevq_platform.tracking import ui
    from mergevq_platform.tracking.store import Store

    return ui.where_to_look(Store.at(places().home, places().tracking_uri), experiment, run)
