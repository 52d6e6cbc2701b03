"""What fine-tuning Source Recovery starts from: a tokenizer, how it was trained, and the generator whose codes it shall place."""

from __future__ import annotations

from pathlib import Path

from mergevq.config import Tree, parse, to_tree
from mergevq.errors import InputError
from mergevq.generation import Generator
from mergevq.serialization import WEIGHTS, load_generator, read_config
from mergevq.tokenizer import MergeVQ
from mergevq_platform.frozen_tokenizer import FrozenTokenizer, find_tokenizer, mismatch
from mergevq_platform.recipe import RecoveryTask, TokenizerTask, known_keeps, untold_task
from mergevq_platform.storage import checkpoints


def settled(task: RecoveryTask) -> Tree:
    """Places and hashes of tokenizer and generator, the kept counts, and the tokenizer's own task, to be stored with a run.

    Raises `InputError` for what is not there, has other hashes than the task says, or does not belong together.
    """
    found = find_tokenizer(task.tokenizer, sha256=task.tokenizer_sha256, key="task.tokenizer")
    stage_1 = _tokenizer_task(found)
    tree: Tree = {"tokenizer": found.location, "tokenizer_sha256": found.sha256, "stage_1": to_tree(stage_1)}
    if task.generator:
        return tree | _settled_generator(task, task.generator, found)
    if task.keep is None and checkpoints.is_bare(found.location):
        raise InputError(f"{found.location} is a tokenizer without a recipe: give task.keep")
    return tree | {"keep": to_tree(task.keep or stage_1.keep)}


def _tokenizer_task(found: FrozenTokenizer) -> TokenizerTask:
    with checkpoints.weights(found.location, files=("config.json", "recipe.yaml")) as directory:
        if checkpoints.is_bare(found.location):
            return parse(TokenizerTask, untold_task(read_config(directory)))
        return checkpoints.recipe_of(directory).tokenizer


def _settled_generator(task: RecoveryTask, place: str, tokenizer: FrozenTokenizer) -> Tree:
    with checkpoints.newest(place, files=checkpoints.MODEL) as directory:
        made, sha256 = checkpoints.recipe_of(directory).generator, _generator_sha256(task, directory)
        location = checkpoints.at_step(place, checkpoints.about(directory)["step"])
    if not tokenizer.makes_codes_of(made.tokenizer_sha256, made.tokenizer_codes_sha256):
        raise InputError(
            mismatch(
                f"task.generator: {location} writes codes of another tokenizer: the one at {tokenizer.location}",
                tokenizer.sha256,
                made.tokenizer_sha256 or "",
            )
        )
    candidates = (task.keep or made.keep).candidates(made.model.grid_tokens)
    if unknown := [keep for keep in candidates if keep not in known_keeps(made.model)]:
        raise InputError(
            f"task.keep: the generator at {location} was not trained at {', '.join(map(str, unknown))} kept tokens: "
            "leave task.keep out to take its own"
        )
    return {"generator": location, "generator_sha256": sha256, "keep": to_tree(task.keep or made.keep)}


def starting_tokenizer(task: RecoveryTask) -> MergeVQ:
    """The tokenizer whose recovery is tuned. Raises `InputError` if it is not there or has another hash than the task says."""
    return find_tokenizer(task.tokenizer, sha256=task.tokenizer_sha256, key="task.tokenizer").load()


def writing_generator(task: RecoveryTask) -> Generator | None:
    """The generator that writes codes anew, if the task names one. Raises `InputError` as `starting_tokenizer` does."""
    if task.generator is None:
        return None
    with checkpoints.newest(task.generator, files=checkpoints.MODEL) as directory:
        _generator_sha256(task, directory)
        return load_generator(directory)


def _generator_sha256(task: RecoveryTask, directory: Path) -> str:
    found = checkpoints.about(directory)["sha256"][WEIGHTS]
    if task.generator_sha256 not in (None, found):
        raise InputError(
            f"task.generator: {task.generator} has weights {found[:12]}…, but {(task.generator_sha256 or '')[:12]}… is "
            "recorded: name the generator that the run began with"
        )
    return found
