"""Where things are: what a name means, and where to look in MLflow, for the home and the store in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.storage.lookup import FoundModel


def found(name: str, *, storage: str | None = None, recipe: str | None = None) -> FoundModel:
    """What a name means in the home and the store in use: see `lookup.find`."""
    from mergevq_platform.storage.lookup import find
    from mergevq_platform.tracking.store import Store

    home = read_settings().home
    return find(
        name, home=home, store=Store.at(home, read_settings().tracking_uri), storage=storage, recipe=recipe
    )


def where_to_look(experiment: str, run: str | None = None) -> str:
    """The address that shows an experiment's curves (or one run's), and the command that serves it."""
    from mergevq_platform.tracking import ui
    from mergevq_platform.tracking.store import Store

    return ui.where_to_look(Store.at(read_settings().home, read_settings().tracking_uri), experiment, run)
