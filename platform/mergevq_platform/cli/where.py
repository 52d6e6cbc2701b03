"""Where things are: what a name means, and where to look in MLflow, for the home and the store in use."""

from __future__ import annotations

from mergevq_platform.storage.settings import places


def located(name: str, *, storage: str | None = None) -> str:
    """The path or URI of a run (here, or of the tracking store alone), a registered model, a checkpoint or a tokenizer."""
    from mergevq_platform.storage.lookup import locate
    from mergevq_platform.tracking.store import Store

    home = places().home
    return locate(name, home=home, store=Store.at(home, places().tracking_uri), storage=storage)


def where_to_look(experiment: str, run: str | None = None) -> str:
    """The address that shows an experiment's curves (or one run's), and the command that serves it."""
    from mergevq_platform.tracking import ui
    from mergevq_platform.tracking.store import Store

    return ui.where_to_look(Store.at(places().home, places().tracking_uri), experiment, run)
