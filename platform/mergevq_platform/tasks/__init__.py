"""The tasks: one file each, all listed here. A new task is a file in this folder and a line below.

A file is imported when a recipe names its task, so that reading a recipe loads nothing of the others.
"""

import importlib
from typing import Any

KINDS = {  # `task.kind` of a recipe -> the class of its task
    "tokenizer": "mergevq_platform.tasks.tokenizer:TokenizerTask",
    "classifier": "mergevq_platform.tasks.classifier:ClassifierTask",
    "generator": "mergevq_platform.tasks.generator:GeneratorTask",
    "finetune": "mergevq_platform.tasks.finetune:FineTuneTask",
    "probe": "mergevq_platform.tasks.probe:ProbeTask",
    "recovery": "mergevq_platform.tasks.recovery:RecoveryTask",
    "allocator": "mergevq_platform.tasks.allocator:AllocatorTask",
}


def find(kind: str) -> Any:
    """The class of a task by its kind."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
