"""A recipe on a cluster, on paper: memory, time and traffic, from a measured step and stated links.

measuring.py    one step of a recipe on this machine: times, memory, sizes
prediction.py   the same on any number of nodes and devices
"""

from mergevq_platform.operations.planning.measuring import Measured, measure
from mergevq_platform.operations.planning.prediction import (
    Links,
    Prediction,
    conclusions,
    describe,
    efficiency,
    on_device,
    predict,
    scaling,
    stops_scaling,
    table,
)

__all__ = [
    "Links",
    "Measured",
    "Prediction",
    "conclusions",
    "describe",
    "efficiency",
    "measure",
    "on_device",
    "predict",
    "scaling",
    "stops_scaling",
    "table",
]
