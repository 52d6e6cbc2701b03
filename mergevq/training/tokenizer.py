"""One training step of the tokenizer: the terms of both phases, and what moves between steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mergevq import serialization
from mergevq.config import parse
from mergevq.discriminator import PatchDiscriminator
from mergevq.ema import RunningMean
from mergevq.errors import InputError
from mergevq.keep import reachable, scaled_keep
from mergevq.losses.adversarial import (
    NoAdversarialConfig,
    PatchAdversarialConfig,
    adaptive_weight,
    discriminate_with_frozen_parameters,
    generator_loss,
    hinge_loss,
    lecam_loss,
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
    feature_rank,
    feature_std,
    self_distillation_loss,
)
from mergevq.losses.config import TokenizerTrainingConfig, loss_preset
from mergevq.losses.perceptual import NoPerceptualConfig, PerceptualDistance, perceptual_distance
from mergevq.losses.reconstruction import reconstruction_loss, recovery_loss
from mergevq.teachers.self_distillation import SelfTeacher
from mergevq.teachers.stand_in import StandInTeacher
from mergevq.teachers.timm_teacher import TimmTeacher
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Output, Training

__all__ = [
    "Output",
    "TokenizerTraining",
    "TokenizerTrainingConfig",
    "Training",
    "build_training",
    "loss_preset",
]


class TokenizerPhase(nn.Module):
    """The tokenizer with every term that trains it."""

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        tokenizer: MergeVQ,
        perceptual: PerceptualDistance | None,
        alignment: nn.Module | None,
        discriminator: PatchDiscriminator | None,
        self_teacher: SelfTeacher | None,
        centre: RunningMean | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.perceptual = perceptual
        self.alignment = alignment
        # In a tuple these are not submodules: their parameters and averages belong elsewhere, and neither an
        # optimizer nor DistributedDataParallel may find them here.
        self._elsewhere = (discriminator, self_teacher, centre)

    def forward(self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int, step: int) -> Output:
        config = self.config
        images = batch["image"]
        result = self.tokenizer(images, keep, detach_recovery=config.recovery.detach)

        image_loss, losses = self._image_terms(images, result.reconstruction)
        terms = [image_loss, *self._adversarial_term(image_loss, result.reconstruction, step, losses)]

        quantizer = self.tokenizer.quantizer.losses(result.latents)
        losses |= quantizer
        entropy_weight = config.entropy.weight * config.entropy.annealing.factor(step)
        losses["entropy_weight"] = torch.full((), entropy_weight, device=images.device)
        entropy = (
            config.entropy.sample_weight * quantizer["sample_entropy"]
            - config.entropy.codebook_weight * quantizer["codebook_entropy"]
        )
        terms += [entropy_weight * entropy, config.commitment_weight * quantizer["commitment"]]

        if config.recovery.weight and result.recovery_logits is not None:
            recovery = recovery_loss(
                config.recovery, result.recovery_logits, result.encoded.source.assignment
            )
            losses["recovery"] = recovery.loss
            losses["recovery_accuracy"] = recovery.accuracy
            losses["recovery_baseline"] = recovery.baseline
            terms.append(config.recovery.weight * recovery.loss)

        if not isinstance(config.alignment, NoAlignmentConfig):
            losses["alignment"] = self._alignment_term(batch, keep, losses)
            terms.append(config.alignment.weight * losses["alignment"])

        total = torch.stack(terms).sum()
        losses["total"] = total
        return Output(
            total=total,
            losses={name: value.detach().float() for name, value in losses.items()},
            carry={"reconstruction": result.reconstruction.detach()},
        )

    def _image_terms(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        losses = {"reconstruction": reconstruction_loss(config.reconstruction, reconstruction, images)}
        image_loss = config.reconstruction.weight * losses["reconstruction"]
        if self.perceptual is not None and not isinstance(config.perceptual, NoPerceptualConfig):
            losses["perceptual"] = self.perceptual(reconstruction, images)
            image_loss = image_loss + config.perceptual.weight * losses["perceptual"]
        return image_loss, losses

    def _adversarial_term(
        self, image_loss: Tensor, reconstruction: Tensor, step: int, losses: dict[str, Tensor]
    ) -> list[Tensor]:
        term, discriminator = self.config.adversarial, self._elsewhere[0]
        if isinstance(term, NoAdversarialConfig) or discriminator is None:
            return []
        if step < term.start_step:
            losses["adversarial"] = image_loss.new_zeros(())
            if term.adaptive:
                losses["d_weight"] = image_loss.new_zeros(())
            return []
        losses["adversarial"] = generator_loss(
            discriminate_with_frozen_parameters(discriminator, reconstruction)
        )
        if not term.adaptive:
            return [term.weight * losses["adversarial"]]
        losses["d_weight"] = term.weight * adaptive_weight(
            image_loss, losses["adversarial"], self.tokenizer.last_layer, len(reconstruction)
        )
        return [losses["d_weight"] * losses["adversarial"]]

    def _alignment_term(self, batch: dict[str, Tensor], keep: int, losses: dict[str, Tensor]) -> Tensor:
        encoder = self.tokenizer.config.encoder

        def kept(view: Tensor) -> int:
            grid = (view.shape[-1] // encoder.reduction) ** 2
            # Rounding may fall below what the layers can reach on a smaller grid.
            return max(
                scaled_keep(keep, self.tokenizer.grid_tokens, grid), reachable(grid, encoder.depth).start
            )

        student_view = batch["student"]
        _, student = self.tokenizer.encode_summary(student_view, kept(student_view), check_values=False)
        assert student is not None
        losses["alignment_feature_std"] = feature_std(student)
        losses["alignment_feature_rank"] = feature_rank(student)
        match self.config.alignment:
            case TimmAlignmentConfig() | StandInAlignmentConfig():
                assert isinstance(self.alignment, MatchTeacher)
                return self.alignment(student, batch["teacher"])
            case SupervisedAlignmentConfig():
                assert isinstance(self.alignment, SupervisedTerm)
                loss, losses["alignment_accuracy"] = self.alignment(student, batch["label"])
                return loss
            case SelfAlignmentConfig() as term:
                _, teacher, centre = self._elsewhere
                assert isinstance(self.alignment, Prototypes)
                assert teacher is not None
                assert centre is not None
                logits = teacher(batch["teacher"], kept(batch["teacher"]))
                loss = self_distillation_loss(term, self.alignment(student), logits, centre.value)
                if torch.is_grad_enabled():
                    centre.observe(logits.mean(0), len(logits))
                return loss
        raise AssertionError(self.config.alignment)


class DiscriminatorPhase(nn.Module):
    """The discriminator on the images and on the reconstructions that the tokenizer phase left."""

    def __init__(
        self, term: PatchAdversarialConfig, discriminator: PatchDiscriminator, lecam: RunningMean
    ) -> None:
        super().__init__()
        self.term = term
        self.discriminator = discriminator
        self._lecam = (lecam,)  # not a submodule: see TokenizerPhase

    def forward(self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int, step: int) -> Output:
        del keep
        (lecam_average,) = self._lecam
        # Apart, because batch norm must not mix the two kinds.
        real = self.discriminator(batch["image"])
        fake = self.discriminator(carry["reconstruction"])
        hinge = hinge_loss(real, fake)
        lecam = lecam_loss(real, fake, lecam_average.value[0], lecam_average.value[1])
        means = torch.stack([real.mean(), fake.mean()]).detach()
        # Until its first step the discriminator stays as it was made: its gradients are zero, not absent.
        active = float(step >= self.term.start_step)
        if active and torch.is_grad_enabled():
            lecam_average.observe(means, len(real))
        losses = {"d_loss": hinge, "d_real": means[0], "d_fake": means[1], "lecam": lecam}
        return Output(
            total=active * (hinge + self.term.lecam_weight * lecam),
            losses={name: value.detach().float() for name, value in losses.items()},
        )


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

    def notes(self) -> list[str]:
        networks = {"alignment's teacher": getattr(self.tokenizer_phase.alignment, "teacher", None)}
        networks["perceptual term's network"] = self.tokenizer_phase.perceptual
        return [
            f"the {name} has its position embeddings {positions}"
            for name, network in networks.items()
            if (positions := getattr(network, "positions", None)) is not None
        ]

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
    """What the tokenizer phase holds for the term, and the self-distillation's teacher."""
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
    """Views that the encoder itself sees must be cut into its cells."""
    image_size = tokenizer.config.image_size
    pixels = tokenizer.config.encoder.reduction
    sizes = term.views_needed(image_size)
    own = {
        "student_size": sizes.student,
        "teacher_size": sizes.teacher if isinstance(term, SelfAlignmentConfig) else None,
    }
    for name, size in own.items():
        if size is not None and (size % pixels or size < pixels):
            raise InputError(
                f"{key}.{name} is {size}: it must be a multiple of the encoder's cell of {pixels} pixels"
            )


def _freeze_untrained(tokenizer: MergeVQ, config: TokenizerTrainingConfig, key: str) -> None:
    """Parameters without a term get no gradient, which a DDP reducer would wait for."""
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
    term: PatchAdversarialConfig, image_size: int, *, seed: int, key: str
) -> PatchDiscriminator:
    if term.discriminator.map_size(image_size) < 1:
        raise InputError(
            f"{key}.discriminator.num_layers is {term.discriminator.num_layers}: {image_size} px images "
            "are too small for that many: lower it"
        )
    return PatchDiscriminator(term.discriminator, seed=seed)
