"""The suite `representation`: probes and nearest neighbours of features at a kept count, with their baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mergevq.metrics.labelled import unfit_labels
from mergevq_platform.evaluation.probing import LabelledFeatures, Probes
from mergevq_platform.evaluation.repetitions import averaged
from mergevq_platform.evaluation.tokenizer_passes import PARTS, TokenizerPasses
from mergevq_platform.evaluation.tokenizer_results import TokenizerFindings
from mergevq_platform.evaluation.tokenizer_worker import Features

FEATURES = ("cls", "mean")
NEIGHBOURS = 7  # nearest training images that are shown of an image


@dataclass
class RepresentationSuite:
    """Metrics of features; `findings` and `lacking` are filled on the way.

    `seeds` initialisations of the untrained encoder are probed; its numbers are then means, with a deviation beside them.
    """

    passes: TokenizerPasses
    findings: TokenizerFindings
    lacking: dict[str, str]  # what the data do not allow, and why
    seeds: int = 1
    unlabelled: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(PARTS, 0)
    )  # of each part's images

    @cached_property
    def probes(self) -> Probes:
        """The probes, each fitted once."""
        return Probes(self.passes.passes)

    def row(self, keep: int) -> dict[str, float]:
        """Probes and nearest neighbours of every feature at a kept count, with their baselines.

        Images without a label are left out; empty where the others make no probe.
        """
        if not self._labelled():
            return {}
        own = {name: name for name in FEATURES}
        found = self.passes.features(keep)
        labels = {part: found[part]["label"] for part in PARTS}
        data = self.passes.spec.recipe.data
        reason = unfit_labels(
            *map(torch.from_numpy, labels.values()), names=(data.train_split, data.evaluation_split)
        )
        if reason is not None:
            self.lacking["probe"] = reason
            return {}
        self.unlabelled = {part: int((y < 0).sum()) for part, y in labels.items()}
        self.findings.neighbours_keep = keep
        shown = found["test"]["cls"][: self.passes.spec.recipe.evaluation.shown_images]
        self.findings.neighbours = nearest(found["train"]["cls"], shown)
        row = self._exact_probes(keep, own, found)
        learned_from = [self.passes.features_key(part, keep) for part in PARTS]
        for protocol in self.passes.spec.recipe.evaluation.probes:
            repeated = [
                {
                    key: value
                    for name in FEATURES
                    for key, value in self.probes.probe(
                        {"of": learned_from, "feature": name},
                        labelled_features(found, name),
                        name,
                        protocol=protocol,
                        seed=seed,
                    ).items()
                }
                | {"majority_top1": row["majority_top1"]}
                for seed in range(self.seeds)
            ]
            row |= averaged(repeated)
        if self._has_untrained_baseline():
            suffixes = {"cls": "untrained", "mean": "untrained_mean"}
            row |= averaged(
                [
                    self._exact_probes(keep, suffixes, self.passes.features(keep, untrained=seed), seed)
                    for seed in range(self.seeds)
                ]
            )
        return row

    def _has_untrained_baseline(self) -> bool:
        weights = self.passes.spec.recipe.tokenizer.initial_weights
        wanted = self.passes.spec.recipe.evaluation.untrained_baseline
        if wanted and weights and not Path(weights).is_file():
            self.lacking["untrained baseline"] = (
                f"the weights that training began with, {weights}, are not there"
            )
            return False
        return wanted

    def _labelled(self) -> bool:
        without = [
            batches.dataset.split
            for batches in self.passes.splits.batches.values()
            if not batches.dataset.labelled
        ]
        if without:
            self.lacking["probe"] = "no labels" if len(without) > 1 else f"no labels in '{without[0]}'"
        return "probe" not in self.lacking

    def _exact_probes(
        self, keep: int, suffixes: dict[str, str], found: dict[str, Features], untrained: int | None = None
    ) -> dict[str, float]:
        learned_from = [self.passes.features_key(part, keep, untrained) for part in PARTS]
        labelled = {name: labelled_features(found, name) for name in suffixes}
        row: dict[str, float] = {}
        for name, suffix in suffixes.items():
            row |= self.probes.probe({"of": learned_from, "feature": name}, labelled[name], suffix)
        row["majority_top1"] = majority_top1(found["train"]["label"], found["test"]["label"])
        for name, suffix in suffixes.items():
            row |= self.probes.neighbours({"of": learned_from, "feature": name}, labelled[name], suffix)
        return row


def labelled_features(found: dict[str, Features], name: str) -> LabelledFeatures:
    """The features of one kind, with labels."""
    train, test = (found[part] for part in PARTS)
    return LabelledFeatures(train[name], train["label"], test[name], test["label"])


def nearest(bank: np.ndarray, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The rows (queries, k) of the bank (M, D) whose features have the largest cosine with each query's, nearest first."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (queries, bank))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :k]


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class; negative labels are none."""
    train_labels, test_labels = train_labels[train_labels >= 0], test_labels[test_labels >= 0]
    return 100 * float(np.mean(test_labels == np.bincount(train_labels).argmax()))
