"""The model card of a pushed model: README.md with the Hub's front matter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import mergevq
from mergevq.generation.config import GeneratorConfig, is_ragged
from mergevq.hub import HubAddress, on_hub, parse_address, short_name
from mergevq.image_size import height_width, size_text
from mergevq.tokenizer import TokenizerConfig
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.operations.publishing.model_index import model_index
from mergevq_platform.recipe import ResolvedRecipe

FIGURES = {"tradeoff.png": "The trade-off over kept tokens", "guidance.png": "Metrics over guidance scales"}
BIBTEX = """@inproceedings{li2025mergevq,
  title = {MergeVQ: A Unified Framework for Visual Generation and Representation with Disentangled Token Merging and Quantization},
  author = {Li, Siyuan and Zhang, Luyuan and Wang, Zedong and Tian, Juanxi and Tan, Cheng and Liu, Zicheng and Yu, Chang and
            Xie, Qingsong and Lu, Haonan and Wang, Haoqian and Lei, Zhen},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {19713--19723},
  year = {2025}
}"""


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What a card tells of. `figures` are files that are pushed beside it; `tokenizer` is the address of a generator's."""

    address: HubAddress  # as it is loaded
    name: str  # of the run
    model: TokenizerConfig | GeneratorConfig
    step: int | None
    recipe: ResolvedRecipe | None
    report: Curve | GeneratorReport | None
    figures: tuple[Path, ...] = ()
    tokenizer: str | None = None
    license: str

    @property
    def is_tokenizer(self) -> bool:
        """Whether it is a tokenizer; else a generator."""
        return isinstance(self.model, TokenizerConfig)


def model_card(content: CardContent) -> str:
    """The text of README.md."""
    front = yaml.safe_dump(front_matter(content), sort_keys=False, allow_unicode=True, width=1000)
    description = content.recipe.description.strip() if content.recipe else ""
    shown = [f"![{FIGURES[file.name]}]({file.name})" for file in content.figures if file.name in FIGURES]
    parts = [
        f"---\n{front}---",
        f"# {content.address.repository.rpartition('/')[2]}",
        description,
        _what(content),
        *shown,
        "## Use",
        f"```bash\npip install mergevq\n```\n\n```python\n{loading(content)}\n```",
        _verbs(content),
        "## Numbers",
        _numbers(content),
        "## Training",
        _training(content),
        "## Licence",
        f"The weights: {content.license}. mergevq: Apache 2.0.",
        "## Citation",
        f"```bibtex\n{BIBTEX}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(content: CardContent) -> dict[str, Any]:
    """The card's metadata, by the Hub's keys."""
    what = ["image-tokenizer"] if content.is_tokenizer else ["image-generation", "class-conditional"]
    found: dict[str, Any] = {"license": content.license, "library_name": "mergevq"}
    if content.is_tokenizer:
        found["pipeline_tag"] = "image-feature-extraction"
    found["tags"] = ["mergevq", *what, "vector-quantization", "token-merging", "arxiv:2504.00999"]
    if content.recipe is not None and on_hub(content.recipe.data.path):
        found["datasets"] = [parse_address(content.recipe.data.path, kind="dataset").repository]
    if base := _base(content):
        found["base_model"] = base
    if index := model_index(content.name, content.report):
        found["model-index"] = index
    return found


def _base(content: CardContent) -> str | None:
    """The repository of the tokenizer that a generator's codes are of, or that the weights began from; None where it has none."""
    trained = content.recipe.task.as_tokenizer if content.recipe is not None else None
    place = content.tokenizer or (trained.initial_run if trained is not None else None)
    if place is None or not on_hub(place):
        return None
    repository = parse_address(place, kind="model").repository
    return repository if repository != content.address.repository else None


def loading(content: CardContent) -> str:
    """The lines of Python that load the model."""
    if isinstance(content.model, TokenizerConfig):
        height, width = height_width(content.model.image_size)
        return (
            f'import mergevq\n\ntokenizer = mergevq.load("{content.address}")\n'
            f"encoded = tokenizer.encode(images, keep={_count(content)})  # images (B, 3, {height}, {width}) in [-1, 1]\n"
            "images = tokenizer.decode(encoded)"
        )
    # Codes of random order are those of kept tokens, placed by Source Recovery; others come for every cell of the grid.
    of_cells = content.model.kind != "random_order"
    every = ", every_cell(indices, tokenizer.config.grid)" if of_cells else ""
    imports = "import torch\n\nimport mergevq\nfrom mergevq.generation import sample\n" + (
        "from mergevq.merging import every_cell\n" if of_cells else ""
    )
    # A ragged one draws the count of every sample.
    own = content.model.kind == "raster" or is_ragged(content.model)
    keep = "" if own else f"keep={_count(content)}, "
    return (
        f'{imports}\ngenerator = mergevq.load_generator("{content.address}")\n'
        f'tokenizer = mergevq.load("{content.tokenizer}")\n'
        f"labels = torch.arange(8) % {content.model.classes}\n"
        f"indices = sample(generator, labels, {keep}sample_ids=torch.arange(8), seed=0).indices\n"
        f"images = tokenizer.decode_indices(indices{every})  # (B, 3, H, W) in [-1, 1]"
    )


def _count(content: CardContent) -> int:
    """A kept count to show: of those that were trained or measured the middle one."""
    counts: tuple[int, ...] = ()
    if isinstance(content.report, Curve):
        counts = tuple(int(row["keep"]) for row in content.report.rows)
    elif content.recipe is not None:
        counts = content.recipe.task.kept_counts()
    return counts[len(counts) // 2] if counts else content.model.grid_tokens


def _what(content: CardContent) -> str:
    trained = f", after {content.step:,} steps" if content.step is not None else ""
    if isinstance(content.model, TokenizerConfig):
        bits = content.model.quantizer.vocabulary.bit_length() - 1
        text = (
            f"A MergeVQ image tokenizer for images of {size_text(content.model.image_size)} px: {content.model.grid_tokens} grid tokens, "
            f"a chosen number of which is kept, and 2^{bits} codes{trained}."
        )
    else:
        kind = content.model.kind.replace("_", " ")
        text = (
            f"A class-conditional {kind} generator of {content.model.classes} classes over {content.model.grid_tokens} grid tokens of "
            f"2^{content.model.bits} codes{trained}. It writes codes of the tokenizer `{content.tokenizer}` and of no other."
        )
    averaged = " Averaged weights." if content.step is not None else ""
    return f"{text}{averaged} Pushed by mergevq {mergevq.__version__}."


def _verbs(content: CardContent) -> str:
    if content.is_tokenizer:
        recipe = "" if content.recipe else " --recipe RECIPE"
        return (
            f"On the command line: `mergevq reconstruct {content.address} photo.jpg --out images`, "
            f"`mergevq evaluate {content.address} --data IMAGES{recipe}`."
        )
    return f"On the command line: `mergevq generate {content.address} --out images`."


def _numbers(content: CardContent) -> str:
    if content.report is None:
        return "Not evaluated."
    verdict = "\n".join(f"- {sentence}" for sentence in content.report.verdict())
    more = f"`{content.report.file_name}` holds all numbers in full precision, with their protocol."
    return "\n\n".join(part for part in (content.report.markdown(), verdict, more) if part)


def _training(content: CardContent) -> str:
    recipe = content.recipe
    if recipe is None:
        return "No recipe is known of these weights."
    length = f"{recipe.steps:,} steps" if recipe.steps is not None else f"{recipe.epochs:g} epochs"
    rows = {
        "recipe": recipe.name,
        "run": content.name,
        "task": recipe.task.kind,
        "data": _data(recipe.data.path),
        "length": f"{length}, global batch {recipe.global_batch}",
        "learning rate": f"{recipe.optimizer.learning_rate:g}",
        "EMA decay": f"{recipe.ema_decay:g}",
        "precision": recipe.precision,
        "seed": str(recipe.seed),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    return f"{table}\n\n`recipe.yaml` is the whole recipe."


def _data(place: str) -> str:
    return f"`{place}`" if on_hub(place) else short_name(place)
