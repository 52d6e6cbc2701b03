"""One step of the tokenizer's training: the terms of the tokenizer and of the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mergevq.discriminator import PatchDiscriminator
from mergevq.ema import RunningMean
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
from mergevq.losses.config import TokenizerTrainingConfig
from mergevq.losses.perceptual import NoPerceptualConfig, PerceptualDistance
from mergevq.losses.reconstruction import reconstruction_loss, recovery_loss
from mergevq.merge_schedule import reachable, scaled_keep
from mergevq.teachers.self_distillation import SelfTeacher
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Output


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

        quantizer = self.tokenizer.quantizer.losses(result.encoded.latents)
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
            grid = (view.shape[-2] // encoder.reduction) * (view.shape[-1] // encoder.reduction)
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
