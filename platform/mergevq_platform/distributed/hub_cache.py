"""Data sets of the Hugging Face Hub in the caches of a cluster's nodes, before workers need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq_platform.distributed.failures import one_line, root_cause


def fetch_on_nodes(places: Iterable[str], *, one_path: bool = False) -> None:
    """Fetch those of `places` that are on the Hub into the cache of every node of the cluster that this process has joined.

    A worker that began by fetching for an hour would be taken for one that hangs. On a cluster of one node nothing is done:
    the driver has read the data there. `one_path`: the folders must have the same path everywhere, because paths in them travel.
    Raises `InputError` naming the node that cannot fetch, and for paths that differ.
    """
    if not (wanted := [place for place in places if on_hub(place)]):
        return
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    fetching = ray.remote(_fetch)
    tasks = []
    for node in nodes:
        there = {"ray.io/node-id": node["NodeID"]}
        task = fetching.options(num_cpus=0, max_retries=0, label_selector=there).remote(wanted)
        tasks.append((node["NodeName"], task))
    folders: dict[tuple[str, ...], str] = {}
    for name, task in tasks:
        try:
            folders.setdefault(ray.get(task), name)
        except ray.exceptions.RayError as error:
            if not isinstance(root_cause(error), InputError):
                raise
            raise InputError(f"node {name}: {one_line(error)}") from None
    if one_path and len(folders) > 1:
        told = ", ".join(f"{paths[0]} on {name}" for paths, name in folders.items())
        raise InputError(
            f"{wanted[0]} is in other places on other nodes ({told}): set HF_HOME to the same path everywhere, or add --serial"
        )


def _fetch(places: Sequence[str]) -> tuple[str, ...]:
    from mergevq_platform.data.hub import local_folder

    return tuple(str(local_folder(place)) for place in places)
