"""`mergevq doctor`: what could go wrong with a run, found before it.

node.py     what one node is and sees; runs there, with or without Ray
judging.py  what the nodes' answers mean: ok, warn or fail, and what to do
visit.py    asks every node of a cluster, or this machine
"""

from mergevq_platform.operations.doctor.judging import Finding, summary
from mergevq_platform.operations.doctor.visit import examine

__all__ = ["Finding", "examine", "summary"]
