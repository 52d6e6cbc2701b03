"""Writes docs/recipe_keys.md: every key of a recipe with its type, default and meaning, from the schema itself.

    python docs/recipe_keys.py

A key's meaning is the comment beside its field in the source, a table's introduction the docstring of its class. Names that mean
the same wherever they stand are explained here once, in `EVERYWHERE`.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mergevq.config import to_tree
from mergevq_platform import tasks
from mergevq_platform.recipe import Recipe

PAGE = Path(__file__).with_name("recipe_keys.md")
WORDS = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", type(None): "none"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

EVERYWHERE = {
    "description": "what a reader of the run should know",
    "experiment": "MLflow's experiment",
    "seed": "of weights, kept counts, order and views",
    "task": "what is trained",
    "global_batch": "images of an optimizer step, over all workers",
    "ema_decay": "of the averaged weights, which are evaluated and exported; 0: none",
    "precision": "of the forward pass (autocast); weights and sums stay float32; `auto`: what this machine multiplies fastest",
    "channels_last": "memory format of convolutions; `auto`: with half precision, where norms keep it",
    "on_nan": "a step whose gradient is not finite ends the run, or is left out",
    "log_every": "steps between records",
    "checkpoint_every": "steps between checkpoints",
    "keep_checkpoints": "how many of the newest stay",
    "model": "the network",
    "encoder": "hybrid (convolutions, then transformer) or a plain vision transformer",
    "quantizer": "LFQ or FSQ",
    "image_size": "in pixels: of a square one number, else [height, width], or 48x64",
    "channels": "of the first stage; each stage multiplies them",
    "multipliers": "of the channels, one a stage",
    "res_blocks": "residual blocks of a stage",
    "width": "of the features",
    "depth": "number of transformer blocks",
    "heads": "attention heads",
    "hidden": "width inside the feed-forward layers",
    "patch": "side of a patch in pixels",
    "positions": "position embedding",
    "levels": "how many values each channel takes",
    "bits": "code channels; 2^bits codes",
    "temperature": "of the softmax",
    "layers": "number of layers",
    "out": "width of the output: the teacher's",
    "peak_merge_ratio": "the candidate nearest to it is drawn most",
    "rate": "how fast the probability falls from one candidate to the next",
    "floor": "added to every candidate's probability before they are normalised",
    "perceptual": "distance of features of reconstruction and image",
    "adversarial": "a discriminator, or none",
    "alignment": "what the summary token is matched with",
    "commitment_weight": "how strongly features are drawn to their codes",
    "kind": "one of those in the heading",
    "weight": "of this term in the loss",
    "sample_weight": "of the mean entropy of a token's code",
    "codebook_weight": "of the entropy of the mean code",
    "lecam_weight": "of LeCam regularisation",
    "lecam_decay": "of its moving averages",
    "num_layers": "strided convolutions",
    "norm": "normalisation of the discriminator",
    "loss": "which distance",
    "student_size": "of the student's view, as `image_size`; none: as its loss wants it",
    "teacher_size": "of the teacher's view, as `image_size`; none: as its loss wants it",
    "classes": "number of classes",
    "label_smoothing": "share of the probability that goes to all classes alike",
    "num_stages": "how often the resolution is halved",
    "directory": "of the exported stand-in teacher",
    "backbone_sha256": "checksum of the backbone's file, verified before use",
    "heads_sha256": "checksum of the heads' file, verified before use",
    "initial_weights_sha256": "its checksum; none: recorded when the run begins",
    "initial_run_sha256": "of its weights; none: recorded when the run begins",
    "tokenizer_sha256": "of its weights; none: recorded when the run begins",
    "generator_sha256": "of its weights; none: recorded when the run begins",
    "student_temperature": "of the student's softmax",
    "teacher_temperature": "of the teacher's softmax",
    "power": "of the schedule `power_cosine`",
    "qk_norm": "normalise queries and keys",
    "rope_base": "base of the rotary positions' frequencies",
    "feature": "[CLS] or the mean token",
    "drop_path": "of the last block, rising from 0 at the first",
    "rate_factors": "of the recipe's learning rate, one for each head",
    "train_split": "split that is trained on",
    "evaluation_split": "split that is evaluated on",
    "image_flip": "how often the image is mirrored",
    "student_flip": "how often the student's view is mirrored",
    "learning_rate": "at its highest",
    "betas": "of AdamW",
    "weight_decay": "of AdamW",
    "clip_norm": "largest norm of the gradient; none: no clipping",
    "schedule": "of the learning rate over the steps",
    "warmup_steps": "in which the rate rises linearly",
    "milestones": "at these fractions of the training the rate is multiplied by `factor`",
    "batch": "images of a forward pass",
    "extractor": "features of the Fréchet distance",
    "workers": "training processes",
    "device": "of a worker; `auto`: a GPU where there is one",
    "cpus_per_worker": "CPU cores that Ray reserves for each",
}

INTRODUCTION = """\
# Every key of a recipe

Generated from the schema by `python docs/recipe_keys.py`; a test keeps it current. [Recipes](recipes.md) says how recipes are written.

A dotted path names a key in the YAML file and on the command line: `mergevq train demo optimizer.learning_rate=1e-3`. *none* is YAML's
`null`. Where several kinds stand under one path, the key `kind` chooses. A default of *required* is what a recipe or its preset
gives; `mergevq recipes NAME` prints a recipe with every key filled in.
"""


@dataclass
class Table:
    """The keys of one configuration class, and the paths at which it stands in a recipe."""

    cls: type
    paths: list[str]
    task: str  # the kind of task under whose key `task` it stands; empty: of every task
    kind: str | None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # key, type, default, meaning

    @property
    def title(self) -> str:
        """The heading: the first path, and the kind where several share it."""
        if not self.paths[0]:
            return "The recipe itself"
        task = f" of a `{self.task}`" if self.task else ""
        return f"`{self.paths[0]}`" + task + (f", kind `{self.kind}`" if self.kind else "")


def tables(root: type = Recipe) -> list[Table]:
    """The tables of a configuration tree, in the order in which their keys are first met."""
    found: dict[type, Table] = {}

    def visit(cls: type, path: str, task: str) -> None:
        if cls in found:
            if path not in found[cls].paths:
                found[cls].paths.append(path)
            return
        table = found[cls] = Table(cls, [path], task, kind_of(cls))
        if path == "task":
            task = table.kind or ""
        comments = comments_of(cls)
        introduction = introduction_of(cls)
        inner: list[tuple[type, str]] = []
        for name, info in fields_of(cls).items():
            classes = list(configs_in(info.annotation))
            inner += [(inner_class, f"{path}.{name}".lstrip(".")) for inner_class in classes]
            meaning = comments.get(name) or (first_sentence(classes[0]) if len(classes) == 1 else "")
            if not meaning:
                meaning = "see above" if f"`{name}`" in introduction else EVERYWHERE.get(name, "")
            if name != "kind" or len(get_args(info.annotation)) > 1:
                table.rows.append((name, type_words(info), default_words(info), meaning))
        for inner_class, inner_path in inner:
            visit(inner_class, inner_path, task)

    visit(root, "", "")
    return list(found.values())


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for table in tables():
        parts.append(f"## {table.title}\n")
        parts.append(introduction_of(table.cls) + "\n")
        if len(table.paths) > 1:
            parts.append("Also at " + ", ".join(f"`{path}`" for path in table.paths[1:]) + ".\n")
        if table.rows:
            lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{key}` | {words} | {default} | {meaning} |"
                for key, words, default, meaning in table.rows
            ]
            parts.append("\n".join(lines) + "\n")
        else:
            parts.append("No further keys.\n")
    return "\n".join(parts)


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """The checked fields of a configuration class; empty for other classes."""
    fields: dict[str, FieldInfo] = dict(getattr(cls, "__pydantic_fields__", {}))
    if cls is Recipe:  # of the tasks a recipe knows no more than that they are some
        kinds = Union[tuple(tasks.find(kind) for kind in tasks.KINDS)]  # noqa: UP007 - made here
        fields["task"] = FieldInfo(annotation=kinds)
    return fields


def settings_of(cls: type) -> type:
    """The class that declares the keys of `cls`: a task's own class may add methods alone."""
    keys = fields_of(cls).keys()
    return next(owner for owner in reversed(cls.__mro__) if fields_of(owner).keys() == keys)


def kind_of(cls: type) -> str | None:
    """The literal that chooses this class among the kinds of a path; none: it stands alone."""
    info = fields_of(cls).get("kind")
    if info is None or get_origin(info.annotation) is not Literal:
        return None
    return "`, `".join(get_args(info.annotation))


def configs_in(annotation: Any) -> Iterator[type]:
    """Configuration classes that an annotation names, at any depth."""
    if isinstance(annotation, type) and "__pydantic_fields__" in vars(annotation):
        yield settings_of(annotation)
    for argument in get_args(annotation):
        yield from configs_in(argument)


def type_words(info: FieldInfo) -> str:
    """A field's type in words, its bounds with it."""
    return words_of(info.annotation, bounds_of(info.metadata))


def words_of(annotation: Any, bounds: str = "") -> str:
    """An annotation in words; `bounds` belong to its number."""
    if get_origin(annotation) is typing.Annotated:
        inner, *metadata = get_args(annotation)
        return words_of(inner, bounds_of(metadata) or bounds)
    if get_origin(annotation) in (Union, types.UnionType):
        configs = list(configs_in(annotation))
        rest = [words_of(part, bounds) for part in get_args(annotation) if not list(configs_in(part))]
        kinds = ", ".join(f"`{kind_of(cls)}`" for cls in configs)
        first = [f"table, kind {kinds}" if len(configs) > 1 else "table"] if configs else []
        return " or ".join(first + rest)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        if parts[-1] is Ellipsis:
            return f"list of {words_of(parts[0], bounds)}"
        return (
            f"list of {len(parts)}: {' and '.join(dict.fromkeys(words_of(part, bounds) for part in parts))}"
        )
    if list(configs_in(annotation)):
        return "table"
    return WORDS.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`") + bounds


def bounds_of(metadata: Any) -> str:
    """Bounds such as ` ≥ 1` among an annotation's metadata."""
    found = []
    for part in metadata:
        inner = part.metadata if isinstance(part, FieldInfo) else [part]
        for bound in inner:
            found += [
                f" {sign} {getattr(bound, name):g}" for name, sign in SIGNS.items() if hasattr(bound, name)
            ]
    return " and".join(found)


def default_words(info: FieldInfo) -> str:
    """A field's default as a recipe would write it."""
    if info.default is PydanticUndefined and info.default_factory is None:
        return "*required*"
    value = info.get_default(call_default_factory=True, validated_data={})
    if fields_of(type(value)):
        tree = to_tree(value)
        return f"kind `{tree['kind']}`" if "kind" in tree else "its own defaults"
    if value is None:
        return "none"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value != "" else "empty"


def comments_of(cls: type) -> dict[str, str]:
    """The comment beside each field of a class, where its source has one; fields of parents included."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not fields_of(owner):
            continue
        text = Path(inspect.getfile(owner)).read_text()
        (node,) = (
            n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef) and n.name == owner.__name__
        )
        spoken = comments_by_line(text)
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.end_lineno:
                lines = [spoken[line] for line in range(part.lineno, part.end_lineno + 1) if line in spoken]
                if lines:
                    found[part.target.id] = " ".join(lines)
    return found


def comments_by_line(text: str) -> dict[int, str]:
    """Line number → the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("# ").replace("|", "\\|")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def docstring(cls: type) -> str:
    """A class's docstring without the indentation of the source."""
    return inspect.cleandoc(cls.__doc__ or "")


def introduction_of(cls: type) -> str:
    """The docstrings of a class and of the parents that share their fields with it."""
    return "\n\n".join(docstring(owner) for owner in cls.__mro__ if fields_of(owner))


def first_sentence(cls: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(docstring(cls).split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python docs/recipe_keys.py")
    PAGE.write_text(page())
