"""Pushing a trained model to the Hugging Face Hub: the checkpoint, its recipe and its evaluation, with a card that tells of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq.generation.config import GeneratorConfig
from mergevq.hub import HubAddress, endpoint, explained, on_hub, parse_address, without_token
from mergevq.serialization import (
    CONFIG,
    GENERATOR,
    TOKENIZER,
    WEIGHTS,
    format_of,
    read_config,
    read_generator_config,
)
from mergevq.tokenizer import TokenizerConfig
from mergevq_platform.codes.tokenizer import tokenizer_of
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.operations.publishing.card import FIGURES, CardContent, loading, model_card
from mergevq_platform.operations.publishing.private import published_recipe, without_places
from mergevq_platform.recipe import ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.hub import ABOUT, RECIPE
from mergevq_platform.storage.json_text import json_text
from mergevq_platform.storage.lookup import FoundModel, find
from mergevq_platform.tracking.store import Store

LICENSE = "apache-2.0"
TOKENIZER_FOLDER = "tokenizer"  # of a generator's repository
KINDS = {TOKENIZER: "tokenizer", GENERATOR: "generator"}
REPORTS: dict[str, type[Curve | GeneratorReport]] = {TOKENIZER: Curve, GENERATOR: GeneratorReport}


@dataclass(frozen=True)
class Pushed:
    """What was pushed: the address to load it by, that of its commit, its page, and the lines that load it."""

    address: str
    pinned: str
    page: str
    loading: str


def push(
    name: str,
    target: str,
    *,
    home: Path,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    license: str = LICENSE,
    evaluation: Path | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Pushed:
    """Push the model called `name`, of its newest checkpoint the averaged weights, to the repository `target`, made if need be.

    `name`: see `find`. `revision` is a branch, made if need be (None: main); `private` holds for a new repository. The card is
    made of `evaluation`, a folder that `mergevq evaluate` wrote, or of the run's own evaluation of this very step that has the
    most rows. A generator's tokenizer goes along, unless it is on the Hub already. Raises `InputError`, before anything is
    uploaded, for a model that is neither tokenizer nor generator, for an evaluation of another checkpoint, without a token, for
    a repository that is public where `private` is asked, and for what the Hub refuses.
    """
    address = _target(target, revision)
    found = find(name, home=home, store=Store.at(home, tracking_uri), storage=storage)
    _require_token(address)
    with checkpoints.weights(found.checkpoint) as directory, tempfile.TemporaryDirectory() as temporary:
        kind = format_of(directory)
        if kind not in KINDS:
            raise InputError(f"{name} holds '{kind}': tokenizers and generators are pushed")
        report, figures = _evaluation(found, kind, evaluation, say)
        recipe = found.stored_recipe
        repository = _Repository(address, private=private)
        tokenizer = None
        if kind == GENERATOR:
            if recipe is None:
                raise InputError(
                    f"{name} is a generator without a recipe, which names its tokenizer: push its run"
                )
            tokenizer = _tokenizer(recipe, repository, address, message)
        content = CardContent(
            address=address,
            name=found.run.name if found.run else found.tracked.name if found.tracked else Path(name).name,
            model=_model(kind, directory),
            step=found.step,
            recipe=recipe and published_recipe(recipe, tokenizer),
            report=report,
            figures=figures,
            tokenizer=tokenizer,
            license=license,
        )
        files = _files(content, directory, Path(temporary))
        commit = repository.commit(files, message or f"Push {content.name}{_at_step(found.step)}")
    pinned = str(replace(address, revision=commit))
    return Pushed(str(address), pinned, f"{endpoint()}/{address.repository}", loading(content))


def _target(target: str, revision: str | None) -> HubAddress:
    address = parse_address(target, kind="model")
    if address.revision is not None:
        raise InputError(f"'{target}': leave @{address.revision} out and give --revision {address.revision}")
    if address.folder:
        raise InputError(f"'{target}': a model is pushed to a repository of its own: write {address.whole}")
    return replace(address, revision=None if revision == "main" else revision)


def _require_token(address: HubAddress) -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise InputError(
            f"{address}: pushing needs a token with the right to write: log in with `hf auth login`, or set HF_TOKEN"
        )


def _at_step(step: int | None) -> str:
    return "" if step is None else f", step {step}"


def _model(kind: str, directory: Path) -> TokenizerConfig | GeneratorConfig:
    return read_config(directory) if kind == TOKENIZER else read_generator_config(directory)


def _evaluation(
    found: FoundModel, kind: str, folder: Path | None, say: Callable[[str], None]
) -> tuple[Curve | GeneratorReport | None, tuple[Path, ...]]:
    """The report that the card is made of, and the figures beside it."""
    report_class = REPORTS[kind]
    if folder is not None:
        report = report_class.load(folder / report_class.file_name)
        if not _is_of(report, found):
            raise InputError(
                f"--evaluation {folder} measured another checkpoint than {found.name}{_at_step(found.step)}: "
                "evaluate that, or name its folder"
            )
        return report, _figures(folder)
    places = sorted(found.directory.glob(f"{report_class.folder}*")) if found.directory else []
    loaded = [
        (report_class.load(place / report_class.file_name), place)
        for place in places
        if (place / report_class.file_name).is_file()
    ]
    fitting = [(report, place) for report, place in loaded if _is_of(report, found)]
    if not fitting:
        say(
            f"no evaluation of {found.name}{_at_step(found.step)} is here: the card has no numbers (mergevq evaluate {found.name}, "
            "or --evaluation DIR)"
        )
        return None, ()
    report, place = max(fitting, key=lambda pair: (len(pair[0].rows), pair[1].stat().st_mtime))
    return report, _figures(place)


def _is_of(report: Curve | GeneratorReport, found: FoundModel) -> bool:
    """Whether a report measured this checkpoint: the same step, and without steps the same place."""
    protocol = report.protocol if isinstance(report, Curve) else report.protocol["generator"]
    if found.step is None:
        return protocol["step"] is None and protocol["checkpoint"] == found.checkpoint
    return protocol["step"] == found.step


def _figures(folder: Path) -> tuple[Path, ...]:
    # Others show images of the data, which are not ours to publish.
    return tuple(folder / name for name in FIGURES if (folder / name).is_file())


def _tokenizer(
    recipe: ResolvedRecipe, repository: _Repository, address: HubAddress, message: str | None
) -> str:
    """The address, with its commit, of a generator's tokenizer: where it is on the Hub, or pushed here into a folder."""
    made = tokenizer_of(recipe)
    if on_hub(made.location):
        return made.location
    with checkpoints.weights(made.location) as directory:
        files = {f"{TOKENIZER_FOLDER}/{name}": directory / name for name in (CONFIG, WEIGHTS)}
        commit = repository.commit(files, message or "Push the tokenizer of the generator's codes")
    return str(replace(address, revision=commit).inside(TOKENIZER_FOLDER))


def _files(content: CardContent, directory: Path, made: Path) -> dict[str, Path]:
    """Name in the repository → file: those of the checkpoint as they are, the others written into `made`."""
    files = {name: directory / name for name in (CONFIG, WEIGHTS)}
    texts = {"README.md": model_card(content)}
    if content.recipe is not None:
        texts[RECIPE] = checkpoints.recipe_yaml(content.recipe)
    if content.report is not None:
        texts[content.report.file_name] = json_text(without_places(asdict(content.report)))
    for name, text in texts.items():
        files[name] = made / name
        files[name].write_text(text)
    if content.recipe is not None:
        files[ABOUT] = made / ABOUT
        files[ABOUT].write_text(json.dumps(_about(content, directory, files), indent=1))
    for figure in content.figures:
        files[figure.name] = made / figure.name
        shutil.copyfile(figure, files[figure.name])
    return files


def _about(content: CardContent, directory: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """The record that makes the repository a whole checkpoint, which every verb opens: without resume.pt."""
    assert content.recipe is not None
    before = checkpoints.about(directory) if (directory / ABOUT).is_file() else {"format": 1}
    hashes = {name: checkpoints.sha256(files[name]) for name in (CONFIG, WEIGHTS, RECIPE)}
    return {**before, "step": content.step, "task": content.recipe.task.kind, "sha256": hashes}


class _Repository:
    """A repository of the Hub that is written to: made at its first commit."""

    def __init__(self, address: HubAddress, *, private: bool) -> None:
        self.address, self.private = address, private
        self.is_ready = False

    def commit(self, files: Mapping[str, Path], message: str) -> str:
        """Add or replace files in one commit; returns its hash."""
        from huggingface_hub import CommitOperationAdd, HfApi

        with explained(self.address, pushing=True):
            api = HfApi()
            self._make(api)
            try:
                made = api.create_commit(
                    self.address.repository,
                    [CommitOperationAdd(name, file) for name, file in sorted(files.items())],
                    commit_message=message,
                    revision=self.address.revision,
                )
            except RuntimeError as error:  # of an upload; what happened is its cause
                raise error.__cause__ or error from None
            except ValueError as error:  # its words for a card or a file that the Hub does not take
                reason = without_token(" ".join(str(error).split())[:300])
                raise InputError(
                    f"{self.address}: the Hub does not take the files ({reason}): correct them, or push again"
                ) from None
        return str(made.oid)

    def _make(self, api: Any) -> None:
        if self.is_ready:
            return
        api.create_repo(self.address.repository, private=self.private or None, exist_ok=True)
        if self.private and not api.repo_info(self.address.repository).private:
            raise InputError(
                f"{self.address.whole} is there already, and public: make it private on its page, or leave --private out"
            )
        if self.address.revision is not None:
            api.create_branch(self.address.repository, branch=self.address.revision, exist_ok=True)
        self.is_ready = True
