"""Adversarial losses of tokenizer and patch discriminator, LeCam regularisation, the adaptive weight."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.config import config
from mergevq.discriminator import DiscriminatorConfig, PatchDiscriminator
from mergevq.number_types import ProperFraction
from mergevq.quantize import average_over_ranks


@config
class NoAdversarialConfig:
    """No discriminator: the training has one phase."""

    kind: Literal["none"] = "none"


@config
class PatchAdversarialConfig:
    """A patch discriminator with hinge loss and LeCam regularisation, from optimizer step `start_step` on.

    With `adaptive`, `weight` multiplies the ratio of the other image terms' gradient to this term's at the
    decoder's last layer (VQGAN, equation 7); otherwise it is the weight itself.
    """

    kind: Literal["patch"] = "patch"
    weight: pydantic.NonNegativeFloat = 0.1
    adaptive: bool = False
    start_step: pydantic.NonNegativeInt = 0
    lecam_weight: pydantic.NonNegativeFloat = 0.01
    lecam_decay: ProperFraction = 0.999
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


AdversarialConfig = Annotated[
    NoAdversarialConfig | PatchAdversarialConfig, pydantic.Field(discriminator="kind")
]


def discriminate_with_frozen_parameters(discriminator: PatchDiscriminator, images: Tensor) -> Tensor:
    """The logits of `images`, differentiable in them alone: the parameters are detached for this call."""
    detached = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return torch.func.functional_call(discriminator, detached, (images,))


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: softplus of minus each image's mean logit, averaged; (B, 1, h, w) to a scalar."""
    return F.softplus(-fake.float().mean(dim=(1, 2, 3))).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss, a scalar, of the logits of images and of reconstructions."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def lecam_loss(real: Tensor, fake: Tensor, average_real: Tensor, average_fake: Tensor) -> Tensor:
    """Hold the logits near the moving averages of the other kind: two maps and two scalars to a scalar.

    Tseng et al. 2021, "Regularizing GANs under limited data", equation 6; one-sided as in their code.
    """
    above = F.relu(real.float() - average_fake).square().mean()
    below = F.relu(average_real - fake.float()).square().mean()
    return above + below


def adaptive_weight(
    image_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, num_images: int
) -> Tensor:
    """The ratio, in [0, 1e4], of the two losses' gradient norms at `last_layer`: a detached float32 scalar.

    Both losses are means over `num_images` of this rank. Their gradients are averaged over the ranks first, so that
    every rank weighs alike and as one rank would that had the whole batch. The graph is kept. 1 where gradients are
    switched off (a validation pass).
    """
    if not torch.is_grad_enabled():
        return torch.ones((), device=image_loss.device)
    # A power of two keeps float16 gradients of mean losses from underflowing, and cancels exactly.
    boost = 2.0**14
    (image_gradient,) = torch.autograd.grad(image_loss * boost, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial_loss * boost, last_layer, retain_graph=True)
    both = average_over_ranks(
        torch.stack([image_gradient.float(), adversarial_gradient.float()]) / boost, num_images
    )
    norms = both.flatten(1).norm(dim=1)
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
