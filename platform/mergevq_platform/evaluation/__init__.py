"""Evaluation: what a tokenizer reconstructs and what its features know, over kept counts, on any number of workers.

subject.py    what is measured, over which pictures, at which kept counts
evaluator.py  one process's models and data; answers jobs
answering.py  who answers them: this process or Ray workers
measuring.py  the curve, from the answers
recording.py  tables, figures, MLflow
verbs.py      all of it by a run's name
"""

from mergevq_platform.evaluation.answering import local_answers, ray_answers
from mergevq_platform.evaluation.classifying import (
    ClassifierEvaluator,
    ProbeEvaluator,
    classify,
    classify_by_probe,
)
from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.measuring import CAVEATS, SUITES, measure
from mergevq_platform.evaluation.recording import record, write
from mergevq_platform.evaluation.subject import Subject, chosen_keeps
from mergevq_platform.evaluation.verbs import (
    after_training,
    curve_after_training,
    evaluate,
    evaluate_pictures,
    reconstruct,
    recovery_after_training,
    register,
    top1_after_training,
)
from mergevq_platform.evaluation.weights import parse_extractor
from mergevq_platform.storage.lookup import find

__all__ = [
    "CAVEATS",
    "SUITES",
    "ClassifierEvaluator",
    "Evaluator",
    "ProbeEvaluator",
    "Subject",
    "after_training",
    "chosen_keeps",
    "classify",
    "classify_by_probe",
    "curve_after_training",
    "evaluate",
    "evaluate_pictures",
    "find",
    "local_answers",
    "measure",
    "parse_extractor",
    "ray_answers",
    "reconstruct",
    "record",
    "recovery_after_training",
    "register",
    "top1_after_training",
    "write",
]
