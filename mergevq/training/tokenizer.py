"""Training of a tokenizer: its phases, discriminator, teachers and moving averages, built from a configuration."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mergevq import serialization
from mergevq.config import parse
from mergevq.discriminator import PatchDiscriminator
from mergevq.ema import RunningMean
from mergevq.errors import InputError
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq.losses.adversarial import (
    PatchAdversarialConfig,
)
from mergevq.losses.alignment import (
    AlignmentConfig,
    MatchTeacher,
    NoAlignmentConfig,
    Prototypes,
    SelfAlignmentConfig,
    StandInAlignmentConfig,
    SupervisedAlignmentConfig,
    SupervisedTerm,
    TimmAlignmentConfig,
)
from mergevq.losses.config import TokenizerTrainingConfig
from mergevq.losses.perceptual import perceptual_distance
from mergevq.teachers.self_distillation import SelfTeacher
from mergevq.teachers.stand_in import StandInTeacher
from mergevq.teachers.timm_teacher import TimmTeacher
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Training
from mergevq.training.tokenizer_phases import DiscriminatorPhase, TokenizerPhase


def build_training(
    config: TokenizerTrainingConfig | Mapping[str, Any],
    tokenizer: MergeVQ,
    *,
    seed: int = 0,
    key: str = "training",
) -> TokenizerTraining:
    """A tokenizer's training from its configuration or its plain tree, with all weights loaded.

    Raises `InputError` for wrong keys and for files that are missing or do not fit, naming keys under `key`.
    """
    if not isinstance(config, TokenizerTrainingConfig):
        config = parse(TokenizerTrainingConfig, config, where=f"{key}.")
    return TokenizerTraining(tokenizer, config, seed=seed, key=key)


class TokenizerTraining(Training):
    """A tokenizer, its discriminator and teachers: phases `tokenizer` and, with a GAN, `discriminator`.

    Parameters of the tokenizer that no term of `config` trains are frozen here: the summary head without
    alignment, the recovery with weight 0. `seed` decides the initial weights of what is made here. Raises
    `InputError` for weights that are missing or do not fit, and for a tokenizer that lacks what a term needs;
    `key` prefixes its keys.
    """

    def __init__(
        self, tokenizer: MergeVQ, config: TokenizerTrainingConfig, *, seed: int = 0, key: str = "training"
    ) -> None:
        super().__init__()
        self.config = config
        image_size = tokenizer.config.image_size
        _check_views(config.alignment, tokenizer, f"{key}.alignment")
        _freeze_untrained(tokenizer, config, key)

        term = config.alignment
        alignment, self.self_teacher = _alignment_modules(term, tokenizer, seed=seed, key=f"{key}.alignment")
        perceptual = perceptual_distance(config.perceptual, image_size=image_size, key=f"{key}.perceptual")
        self.averages = nn.ModuleDict()
        centre = lecam = discriminator = None
        if isinstance(term, SelfAlignmentConfig):
            self.averages["centre"] = centre = RunningMean((term.prototypes,), term.centre_momentum)
        if isinstance(config.adversarial, PatchAdversarialConfig):
            discriminator = _discriminator(
                config.adversarial, image_size, seed=seed, key=f"{key}.adversarial"
            )
            self.averages["lecam"] = lecam = RunningMean((2,), config.adversarial.lecam_decay)

        self.phases = nn.ModuleDict()
        self.phases["tokenizer"] = TokenizerPhase(
            config, tokenizer, perceptual, alignment, discriminator, self.self_teacher, centre
        )
        if (
            isinstance(config.adversarial, PatchAdversarialConfig)
            and discriminator is not None
            and lecam is not None
        ):
            self.phases["discriminator"] = DiscriminatorPhase(config.adversarial, discriminator, lecam)

    @property
    def tokenizer_phase(self) -> TokenizerPhase:
        phase = self.phases["tokenizer"]
        assert isinstance(phase, TokenizerPhase)
        return phase

    def model(self) -> MergeVQ:
        return self.tokenizer_phase.tokenizer

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, MergeVQ)
        serialization.save(model, directory)

    def train(self, mode: bool = True) -> TokenizerTraining:
        super().train(mode)
        if self.self_teacher is not None:
            self.self_teacher.eval()
        return self

    def rests(self, phase: str, step: int) -> bool:
        term = self.config.adversarial
        return (
            phase == "discriminator" and isinstance(term, PatchAdversarialConfig) and step < term.start_step
        )

    def variant(self, step: int) -> Hashable:
        term = self.config.adversarial
        begun = isinstance(term, PatchAdversarialConfig) and step >= term.start_step
        return begun, self.config.entropy.annealing.factor(step)

    def notes(self) -> list[str]:
        networks = {"alignment's teacher": getattr(self.tokenizer_phase.alignment, "teacher", None)}
        networks["perceptual term's network"] = self.tokenizer_phase.perceptual
        return [
            f"the {name} has its position embeddings {positions}"
            for name, network in networks.items()
            if (positions := getattr(network, "positions", None)) is not None
        ]

    def restart_teacher(self) -> None:
        """Make the teacher of self-distillation, if there is one, a copy of the tokenizer and its prototypes."""
        if self.self_teacher is not None:
            assert isinstance(self.tokenizer_phase.alignment, Prototypes)
            self.self_teacher.follow(self.model(), self.tokenizer_phase.alignment, 0.0)

    def after_step(self, step: int) -> None:
        del step
        for average in self.averages.values():
            assert isinstance(average, RunningMean)
            average.fold()
        if self.self_teacher is not None:
            assert isinstance(self.config.alignment, SelfAlignmentConfig)
            assert isinstance(self.tokenizer_phase.alignment, Prototypes)
            self.self_teacher.follow(
                self.model(), self.tokenizer_phase.alignment, self.config.alignment.momentum
            )


def _alignment_modules(
    term: AlignmentConfig, tokenizer: MergeVQ, *, seed: int, key: str
) -> tuple[nn.Module | None, SelfTeacher | None]:
    """The tokenizer phase's module of the term, and the teacher of self-distillation."""
    match term:
        case NoAlignmentConfig():
            return None, None
        case SelfAlignmentConfig():
            prototypes = Prototypes(_head_dim(tokenizer, key), term.prototypes, seed=seed)
            return prototypes, SelfTeacher(tokenizer, prototypes)
        case SupervisedAlignmentConfig():
            return SupervisedTerm(term, _head_dim(tokenizer, key), seed=seed), None
        case TimmAlignmentConfig() | StandInAlignmentConfig():
            teacher = (
                TimmTeacher(term, key=key)
                if isinstance(term, TimmAlignmentConfig)
                else StandInTeacher(term, key=key)
            )
            dim = _head_dim(tokenizer, key)
            if teacher.dim != dim:
                raise InputError(
                    f"{key}: the teacher's features have {teacher.dim} numbers, the tokenizer's head {dim}: "
                    f"set model.head.out={teacher.dim}"
                )
            return MatchTeacher(term, teacher), None
    raise AssertionError(term)


def _check_views(term: AlignmentConfig, tokenizer: MergeVQ, key: str) -> None:
    """Raise `InputError` for views that the encoder cannot cut into its cells."""
    image_size = tokenizer.config.image_size
    pixels = tokenizer.config.encoder.reduction
    sizes = term.views_needed(image_size)
    own = {
        "student_size": sizes.student,
        "teacher_size": sizes.teacher if isinstance(term, SelfAlignmentConfig) else None,
    }
    for name, size in own.items():
        if size is not None and any(side % pixels for side in height_width(size)):
            raise InputError(
                f"{key}.{name} is {size_text(size)}: it must be a multiple of the encoder's cell of {pixels} pixels"
            )


def _freeze_untrained(tokenizer: MergeVQ, config: TokenizerTrainingConfig, key: str) -> None:
    """Freeze parameters that no term trains: they get no gradient, which a DDP reducer would wait for."""
    if tokenizer.recovery is None and config.recovery.weight:
        raise InputError(
            f"{key}.recovery.weight is {config.recovery.weight}, but the tokenizer has no recovery: "
            "set it to 0, or give the tokenizer one"
        )
    if tokenizer.recovery is not None and not config.recovery.weight:
        tokenizer.recovery.requires_grad_(False)
    if tokenizer.head is not None and isinstance(config.alignment, NoAlignmentConfig):
        tokenizer.head.requires_grad_(False)


def _head_dim(tokenizer: MergeVQ, key: str) -> int:
    dim = tokenizer.config.head_dim
    if dim is None:
        raise InputError(
            f"{key}: the tokenizer has no summary head to align: give it one, or set {key}.kind to none"
        )
    return dim


def _discriminator(
    term: PatchAdversarialConfig, image_size: ImageSize, *, seed: int, key: str
) -> PatchDiscriminator:
    if term.discriminator.map_size(min(height_width(image_size))) < 1:
        raise InputError(
            f"{key}.discriminator.num_layers is {term.discriminator.num_layers}: {size_text(image_size)} px images "
            "are too small for that many: lower it"
        )
    return PatchDiscriminator(term.discriminator, seed=seed)
