"""Names and links in the home and the tracking store in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.storage.lookup import FoundModel
    from mergevq_platform.tracking.store import Store


def store_in_use() -> Store:
    """The tracking store of the environment, by default the one in the home."""
    from mergevq_platform.tracking.store import Store

    return Store.at(read_settings().home, read_settings().tracking_uri)


def found(name: str, *, storage: str | None = None, recipe: str | None = None) -> FoundModel:
    """The model of a name: see `lookup.find`."""
    from mergevq_platform.storage.lookup import find

    return find(name, home=read_settings().home, store=store_in_use(), storage=storage, recipe=recipe)


def tracking_link(experiment: str, run: str | None = None) -> str:
    """One line: the address that shows an experiment's curves (or one run's), and the command that serves it."""
    from mergevq_platform.tracking import ui

    return ui.tracking_link(store_in_use(), experiment, run)
