"""`mergevq doctor`: a cluster and a recipe checked before a run.

node.py         what one node has and sees; runs there, with or without Ray
checks.py       findings from the nodes' reports: ok, warn or fail, and a fix
examination.py  queries every node of a cluster, or this machine
"""

from mergevq_platform.operations.doctor.checks import Finding, summary
from mergevq_platform.operations.doctor.examination import examine

__all__ = ["Finding", "examine", "summary"]
