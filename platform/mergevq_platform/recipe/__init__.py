"""Recipes: the only input of a run, from a few lines of YAML to everything that decides what a run computes.

task_config.py  the section `task`: methods that a recipe calls, and the settings of the two stages
sections.py     the other sections: data, optimizer, cluster, evaluation
precision.py    what `auto` stands for on this machine
schema.py       `Recipe`: complete and checked; `ResolvedRecipe`: the input of workers, trials and evaluators
files.py        recipe files and the packaged recipes
forking.py      the keys that may change where a training is forked
paths.py        the files and folders that a recipe names
resolve.py      read, override, complete, check, make absolute, pin: once, in the driver
"""

from mergevq_platform.recipe.files import find, packaged_recipes, read
from mergevq_platform.recipe.forking import require_forkable
from mergevq_platform.recipe.paths import data_places, named_paths, weights_files
from mergevq_platform.recipe.resolve import (
    FindRun,
    Pins,
    complete,
    left_to_machine,
    load,
    locate,
    machine_choices,
    parse_resolved,
    path_kind,
    placeholder_task,
    resolve,
)
from mergevq_platform.recipe.schema import Recipe, ResolvedRecipe
from mergevq_platform.recipe.sections import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    ForkConfig,
    OptimizerConfig,
)
from mergevq_platform.recipe.task_config import (
    GenerationConfig,
    GeneratorTaskConfig,
    TaskConfig,
    TokenizerTaskConfig,
    trainable_keeps,
)

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "EvaluationConfig",
    "FindRun",
    "ForkConfig",
    "GenerationConfig",
    "GeneratorTaskConfig",
    "OptimizerConfig",
    "Pins",
    "Recipe",
    "ResolvedRecipe",
    "TaskConfig",
    "TokenizerTaskConfig",
    "complete",
    "data_places",
    "find",
    "left_to_machine",
    "load",
    "locate",
    "machine_choices",
    "named_paths",
    "packaged_recipes",
    "parse_resolved",
    "path_kind",
    "placeholder_task",
    "read",
    "require_forkable",
    "resolve",
    "trainable_keeps",
    "weights_files",
]
