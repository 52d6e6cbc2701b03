import math

import pytest
import torch
import torch.nn.functional as F

from mergevq.discriminator import DiscriminatorConfig, PatchDiscriminator
from mergevq.losses.adversarial import (
    adaptive_weight,
    discriminate_with_frozen_parameters,
    generator_loss,
    hinge_loss,
    lecam_loss,
)
from mergevq.losses.reconstruction import (
    ReconstructionConfig,
    RecoveryLossConfig,
    reconstruction_loss,
    recovery_loss,
)


def test_l1_l2_is_the_sum_of_both_means():
    a, b = torch.randn(2, 2, 3, 8, 8).unbind()
    terms = [reconstruction_loss(ReconstructionConfig(kind=kind), a, b) for kind in ("l1", "l2", "l1_l2")]
    torch.testing.assert_close(terms[0], (a - b).abs().mean())
    torch.testing.assert_close(terms[1], (a - b).pow(2).mean())
    torch.testing.assert_close(terms[2], terms[0] + terms[1])


def test_reconstruction_is_float32_for_half_precision_images():
    a, b = torch.randn(2, 2, 3, 8, 8).bfloat16().unbind()
    assert reconstruction_loss(ReconstructionConfig(), a, b).dtype == torch.float32


@pytest.mark.parametrize("loss", ["categorical", "binary"])
def test_a_certain_and_right_recovery_has_no_loss_and_full_accuracy(loss):
    assignment = torch.tensor([[0, 1, 1, 2], [2, 2, 2, 0]])
    logits = F.one_hot(assignment, 3) * 80.0 - 40.0
    terms = recovery_loss(RecoveryLossConfig(loss=loss), logits, assignment)
    assert terms.loss < 1e-6
    assert terms.accuracy == 1
    assert terms.baseline == (2 / 4 + 3 / 4) / 2


def test_an_ignorant_recovery_costs_the_logarithm_of_the_kept_count():
    assignment = torch.randint(0, 5, (3, 16))
    terms = recovery_loss(RecoveryLossConfig(), torch.zeros(3, 16, 5), assignment)
    assert math.isclose(terms.loss.item(), math.log(5), rel_tol=1e-6)
    binary = recovery_loss(RecoveryLossConfig(loss="binary"), torch.zeros(3, 16, 5), assignment)
    assert math.isclose(binary.loss.item(), math.log(2), rel_tol=1e-6)


def test_adversarial_losses_follow_their_formulas():
    real, fake = torch.randn(2, 4, 1, 3, 3).unbind()
    per_image = [math.log1p(math.exp(-fake[i].mean().item())) for i in range(4)]
    assert math.isclose(generator_loss(fake).item(), sum(per_image) / 4, rel_tol=1e-5)
    hinge = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    torch.testing.assert_close(hinge_loss(real, fake), hinge)
    averages = torch.tensor(0.3), torch.tensor(-0.2)
    expected = (real + 0.2).clamp(min=0).pow(2).mean() + (0.3 - fake).clamp(min=0).pow(2).mean()
    torch.testing.assert_close(lecam_loss(real, fake, *averages), expected)


def test_the_generator_step_leaves_no_trace_in_the_discriminator():
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=8, num_layers=2))
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    loss = generator_loss(discriminate_with_frozen_parameters(discriminator, images))
    loss.backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_judging_without_gradient_gives_the_same_logits():
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=8, num_layers=2))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        discriminate_with_frozen_parameters(discriminator, images), discriminator(images)
    )


def test_the_adaptive_weight_makes_both_gradients_equally_long_and_does_not_depend_on_scale():
    layer = torch.nn.Parameter(torch.randn(4, 3))
    x = torch.randn(5, 3)
    image, adversarial = (x @ layer.T).square().mean(), (x @ layer.T).sin().mean()
    weight = adaptive_weight(image, adversarial, layer, 4)
    lengths = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (image, adversarial)]
    torch.testing.assert_close(weight, lengths[0] / (lengths[1] + 1e-4))
    torch.testing.assert_close(adaptive_weight(3 * image, adversarial, layer, 4), 3 * weight)
    assert not weight.requires_grad
    assert layer.grad is None
    assert adaptive_weight(image, adversarial * 1e-12, layer, 4) <= 1e4


def test_a_validation_pass_without_gradients_has_a_neutral_adaptive_weight():
    layer = torch.nn.Parameter(torch.randn(2))
    with torch.no_grad():
        assert adaptive_weight(layer.sum(), layer.sum(), layer, 4) == 1
