import pytest
import torch

from mergevq.config import parse
from mergevq.discriminator import DiscriminatorConfig, PatchDiscriminator
from mergevq.errors import InputError


def test_the_default_is_the_published_patch_discriminator():
    discriminator = PatchDiscriminator()
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    assert DiscriminatorConfig().map_size(256) == 30
    with torch.no_grad():
        assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("num_layers", "size"), [(1, 8), (2, 32), (3, 40)])
def test_the_map_has_the_promised_size_and_every_parameter_a_finite_gradient(norm, num_layers, size):
    config = DiscriminatorConfig(channels=8, num_layers=num_layers, norm=norm)
    discriminator = PatchDiscriminator(config)
    logits = discriminator(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 1, config.map_size(size), config.map_size(size))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())


def test_one_logit_sees_a_patch_of_70_pixels():
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=8, norm="none"))
    images = torch.zeros(1, 3, 192, 192, requires_grad=True)
    discriminator(images)[0, 0, 11, 11].backward()
    seen = images.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_the_seed_alone_decides_the_initial_weights():
    config = DiscriminatorConfig(channels=8, num_layers=2)
    torch.manual_seed(1)
    one = PatchDiscriminator(config, seed=5)
    torch.manual_seed(2)
    two, other = PatchDiscriminator(config, seed=5), PatchDiscriminator(config, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.features[0].weight, other.features[0].weight)


def test_there_are_no_buffers_that_a_forward_pass_could_change():
    assert not list(PatchDiscriminator(DiscriminatorConfig(channels=8)).buffers())


def test_logits_are_float32_under_autocast():
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=8, num_layers=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert discriminator(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_group_norm_with_odd_channels_is_refused():
    with pytest.raises(InputError, match="multiple of 8"):
        parse(DiscriminatorConfig, {"channels": 12, "norm": "group"})
