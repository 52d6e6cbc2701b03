"""Memory, time and traffic of a recipe on a cluster, predicted from a measured step and stated links.

synthetic.py    images and codes of the recipe's size
activations.py  memory that autograd holds for the backward pass
measuring.py    one step of a recipe on this machine: times, memory, sizes
prediction.py   the same on any number of nodes and devices
report.py       the prediction in words
"""

from mergevq_platform.operations.planning.measuring import StepMeasurement, load_measurement, measure
from mergevq_platform.operations.planning.prediction import (
    Links,
    ScalingPrediction,
    efficiency,
    on_device,
    predict,
    scaling,
    stops_scaling,
)
from mergevq_platform.operations.planning.report import conclusions, describe, table

__all__ = [
    "Links",
    "ScalingPrediction",
    "StepMeasurement",
    "conclusions",
    "describe",
    "efficiency",
    "load_measurement",
    "measure",
    "on_device",
    "predict",
    "scaling",
    "stops_scaling",
    "table",
]
