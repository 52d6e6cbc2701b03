import copy
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import mergevq
from mergevq.config import merged, parse
from mergevq.errors import InputError
from mergevq.losses.config import AnnealingConfig, TokenizerTrainingConfig, loss_preset
from mergevq.merge_schedule import reachable
from mergevq.teachers.stand_in import StandInClassifier, StandInConfig, save_classifier
from mergevq.training.tokenizer import build_training

SMALL_GAN = {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 2}}
NAMES = {"reconstruction", "commitment", "sample_entropy", "codebook_entropy", "entropy_weight", "total"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A stand-in and a timm network whose features are as wide as the test tokenizers' heads."""
    directory = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    dim = mergevq.create("test_gr").config.head_dim
    save_classifier(
        StandInClassifier(StandInConfig(classes=3, width=dim, num_stages=1)), directory / "stand_in"
    )
    save_file(timm.create_model("test_vit").state_dict(), directory / "vit.safetensors")
    return directory


def _trees(files):
    return {
        "plain": {"adversarial": {"kind": "none"}},
        "binary recovery, detached": {
            "adversarial": SMALL_GAN,
            "recovery": {"loss": "binary", "detach": True},
        },
        "self-distillation, adaptive": {
            "adversarial": {**SMALL_GAN, "adaptive": True, "weight": 0.8},
            "alignment": {"kind": "self", "prototypes": 16},
        },
        "supervised": {"adversarial": SMALL_GAN, "alignment": {"kind": "supervised", "classes": 3}},
        "stand-in": {
            "adversarial": SMALL_GAN,
            "perceptual": {"kind": "stand_in", "directory": str(files / "stand_in")},
            "alignment": {"kind": "stand_in", "directory": str(files / "stand_in")},
        },
    }


TERMS = ["plain", "binary recovery, detached", "self-distillation, adaptive", "supervised", "stand-in"]


def _training(tree, preset="test_gr", seed=0, overrides=None):
    torch.manual_seed(seed)
    return build_training(tree, mergevq.create(preset, overrides), seed=seed)


def _batch(training, size=2, seed=0):
    """Smooth random images with the views that the training needs; the second has no label."""
    generator = torch.Generator().manual_seed(seed)
    side = training.model().config.image_size
    views = training.config.views_needed(side)
    coarse = torch.rand(size, 3, 2, 2, generator=generator) * 2 - 1
    sizes = {"image": side, "student": views.student, "teacher": views.teacher}
    batch = {
        name: F.interpolate(coarse, (s, s), mode="bilinear")
        + 0.05 * torch.randn(size, 3, s, s, generator=generator)
        for name, s in sizes.items()
        if s is not None
    }
    return batch | {"label": torch.tensor([1, -1, 0, 2])[:size]}


def _step(training, batch, keep, step=0, optimizers=None):
    """What a loop does on one micro-batch; returns the outputs by phase."""
    carry, outputs = {}, {}
    for name, phase in training.phases.items():
        output = phase(batch, carry, keep=keep, step=step)
        output.total.backward()
        carry |= output.carry
        outputs[name] = output
    if optimizers is not None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        training.after_step(step)
    return outputs


def _keep(training):
    return training.model().grid_tokens // 2


def _optimizers(training, lr=1e-3):
    return [
        torch.optim.AdamW([p for p in phase.parameters() if p.requires_grad], lr=lr)
        for phase in training.phases.values()
    ]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("preset", ["test_g", "test_gr", "test_r"])
def test_every_trainable_parameter_is_in_one_phase_and_gets_a_finite_gradient(files, terms, preset):
    training = _training(_trees(files)[terms], preset)
    outputs = _step(training, _batch(training), _keep(training))
    owned = [id(p) for phase in training.phases.values() for p in phase.parameters() if p.requires_grad]
    assert len(owned) == len(set(owned))
    trainable = {name: p for name, p in training.named_parameters() if p.requires_grad}
    assert {id(p) for p in trainable.values()} == set(owned)
    assert [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert set(outputs["tokenizer"].losses) >= NAMES
    for output in outputs.values():
        assert output.total.ndim == 0
        for value in output.losses.values():
            assert value.dtype == torch.float32
            assert value.ndim == 0
            assert not value.requires_grad
            assert value.isfinite()


@pytest.mark.parametrize("terms", TERMS)
def test_the_total_is_the_weighted_sum_of_the_reported_terms(files, terms):
    training = _training(_trees(files)[terms])
    config = training.config
    losses = _step(training, _batch(training), _keep(training))["tokenizer"].losses
    expected = (
        config.reconstruction.weight * losses["reconstruction"]
        + config.commitment_weight * losses["commitment"]
        + losses["entropy_weight"] * (losses["sample_entropy"] - losses["codebook_entropy"])
        + config.recovery.weight * losses["recovery"]
    )
    if "perceptual" in losses:
        expected += config.perceptual.weight * losses["perceptual"]
    if "adversarial" in losses:
        expected += losses.get("d_weight", config.adversarial.weight) * losses["adversarial"]
    if "alignment" in losses:
        expected += config.alignment.weight * losses["alignment"]
    torch.testing.assert_close(losses["total"], expected)


def test_the_tokenizer_phase_never_touches_the_discriminators_gradients(files):
    training = _training(_trees(files)["self-distillation, adaptive"])
    tokenizer, discriminator = training.phases["tokenizer"], training.phases["discriminator"]
    parameters = list(discriminator.parameters())
    carries = []
    for seed in (1, 2):  # two accumulated micro-batches of one step
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        output = tokenizer(_batch(training, seed=seed), {}, keep=_keep(training), step=0)
        output.total.backward()
        for p, gradient in zip(parameters, before, strict=True):
            assert (p.grad is None) if gradient is None else torch.equal(p.grad, gradient)
        carries.append(output.carry)
        discriminator(
            _batch(training, seed=seed), output.carry, keep=_keep(training), step=0
        ).total.backward()
    accumulated = [p.grad.clone() for p in parameters]
    discriminator.zero_grad()
    for seed, carry in zip((1, 2), carries, strict=True):
        discriminator(_batch(training, seed=seed), carry, keep=_keep(training), step=0).total.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, accumulated, strict=True))


def test_the_discriminator_phase_never_touches_the_tokenizers_gradients(files):
    training = _training(_trees(files)["stand-in"])
    batch = _batch(training)
    output = training.phases["tokenizer"](batch, {}, keep=_keep(training), step=0)
    training.phases["discriminator"](batch, output.carry, keep=_keep(training), step=0).total.backward()
    assert all(p.grad is None for p in training.model().parameters())


def test_without_an_adversarial_term_there_is_one_phase():
    training = _training({"adversarial": {"kind": "none"}})
    assert list(training.phases) == ["tokenizer"]
    assert "adversarial" not in _step(training, _batch(training), _keep(training))["tokenizer"].losses


def test_before_its_start_step_the_adversarial_term_is_off_on_both_sides():
    training = _training({"adversarial": {**SMALL_GAN, "start_step": 3}})
    before = _step(training, _batch(training), _keep(training), step=2)
    assert before["tokenizer"].losses["adversarial"] == 0
    assert all(p.grad.abs().sum() == 0 for p in training.phases["discriminator"].parameters())
    after = _step(training, _batch(training), _keep(training), step=3)
    assert after["tokenizer"].losses["adversarial"] > 0
    assert all(p.grad.abs().sum() > 0 for p in training.phases["discriminator"].parameters())


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_losses_have_the_same_names_before_and_after_the_start_step(adaptive):
    training = _training({"adversarial": {**SMALL_GAN, "start_step": 3, "adaptive": adaptive}})
    before, after = (_step(training, _batch(training), _keep(training), step=step) for step in (2, 3))
    for phase, output in before.items():
        assert list(output.losses) == list(after[phase].losses)
    if adaptive:
        assert before["tokenizer"].losses["d_weight"] == 0


def test_a_forward_pass_that_is_not_finite_leaves_the_averages_of_later_steps_alone(files):
    training = _training(_trees(files)["self-distillation, adaptive"])
    for step in range(3):
        batch = _batch(training, seed=step)
        if step == 1:
            batch = {name: value.float() * torch.nan for name, value in batch.items()}
            batch["label"] = torch.zeros(2, dtype=torch.int64)
        outputs = _step(training, batch, _keep(training), step=step)
        training.zero_grad()
        training.after_step(step)
    assert all(average.value.isfinite().all() for average in training.averages.values())
    assert all(value.isfinite() for output in outputs.values() for value in output.losses.values())


def test_the_discriminator_rests_until_its_start_step():
    training = _training({"adversarial": {**SMALL_GAN, "start_step": 3}})
    assert [training.rests("discriminator", step) for step in range(5)] == [True] * 3 + [False] * 2
    assert not any(training.rests("tokenizer", step) for step in range(5))


def test_the_entropy_weight_is_annealed_by_the_step():
    assert [AnnealingConfig(start_factor=5, steps=4).factor(step) for step in range(6)] == [5, 4, 3, 2, 1, 1]
    tree = {
        "adversarial": {"kind": "none"},
        "entropy": {"weight": 0.2, "annealing": {"start_factor": 3, "steps": 2}},
    }
    training = _training(tree)
    for step, expected in enumerate([0.6, 0.4, 0.2]):
        output = training.phases["tokenizer"](_batch(training), {}, keep=_keep(training), step=step)
        torch.testing.assert_close(output.losses["entropy_weight"], torch.tensor(expected))


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(files):
    training = _training(_trees(files)["stand-in"])
    batch, optimizers = _batch(training, size=4), _optimizers(training, lr=3e-3)
    totals = [
        _step(training, batch, _keep(training), step, optimizers)["tokenizer"].losses for step in range(25)
    ]
    for name in ("reconstruction", "alignment", "recovery"):
        assert totals[-1][name] < 0.9 * totals[0][name], name


@pytest.mark.parametrize("terms", ["self-distillation, adaptive", "stand-in"])
def test_a_resumed_training_goes_on_bit_for_bit(files, terms):
    tree = _trees(files)[terms]
    one, two = _training(tree, seed=0), _training(tree, seed=1)
    optimizers = _optimizers(one)
    for step in range(2):
        _step(one, _batch(one, seed=step), _keep(one), step, optimizers)
    state = copy.deepcopy(one.resume_state())
    assert not any(frozen in name for name in state for frozen in ("perceptual", "alignment.teacher"))
    assert "averages.lecam.value" in state
    two.load_resume_state(state)
    resumed = _optimizers(two)
    for new, old in zip(resumed, optimizers, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    for step in range(2, 4):
        outputs = [
            _step(training, _batch(one, seed=step), _keep(one), step, chosen)
            for training, chosen in ((one, optimizers), (two, resumed))
        ]
        for name in one.phases:
            assert outputs[0][name].losses == outputs[1][name].losses
    for name, value in one.resume_state().items():
        assert torch.equal(value, two.resume_state()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused_before_any_change(files):
    one = _training(_trees(files)["self-distillation, adaptive"])
    two = _training(_trees(files)["supervised"], seed=1)
    before = copy.deepcopy(two.resume_state())
    with pytest.raises(InputError, match=r"does not belong to this recipe: it lacks .*has unknown"):
        two.load_resume_state(one.resume_state())
    assert all(torch.equal(value, before[name]) for name, value in two.resume_state().items())


def test_the_self_teacher_follows_the_tokenizer_and_takes_no_gradient(files):
    training = _training(_trees(files)["self-distillation, adaptive"])
    training.train()
    teacher = training.self_teacher
    assert not any(module.training for module in teacher.modules())
    before = [p.clone() for p in teacher.parameters()]
    _step(training, _batch(training), _keep(training), 0, _optimizers(training, lr=0.1))
    assert all(p.grad is None for p in teacher.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    own = dict(training.model().named_parameters())
    momentum = training.config.alignment.momentum
    name, averaged = next((n, p) for n, p in teacher.encoder.named_parameters() if p.ndim > 1)
    start = dict(_training(_trees(files)["self-distillation, adaptive"]).model().named_parameters())[name]
    torch.testing.assert_close(averaged, momentum * start + (1 - momentum) * own[name])


def test_the_centre_and_lecam_averages_move_once_per_step(files):
    training = _training(_trees(files)["self-distillation, adaptive"])
    values = []
    for seed in (0, 1):
        outputs = _step(training, _batch(training, seed=seed), _keep(training))
        values.append([outputs["discriminator"].losses[name] for name in ("d_real", "d_fake")])
        assert training.averages["lecam"].value.abs().sum() == 0
    training.after_step(0)
    mean = torch.tensor(values).mean(0)
    torch.testing.assert_close(training.averages["lecam"].value, 0.001 * mean, rtol=1e-4, atol=1e-9)
    assert training.averages["centre"].value.abs().sum() > 0


def test_terms_are_computed_in_float32_under_autocast(files):
    training = _training(_trees(files)["stand-in"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = _step(training, _batch(training), _keep(training))
    for output in outputs.values():
        assert output.total.dtype == torch.float32
        assert output.total.isfinite()
    trainable = [p for p in training.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trainable)


def test_a_validation_pass_without_gradients_leaves_the_averages_alone(files):
    training = _training(_trees(files)["self-distillation, adaptive"])
    batch = _batch(training)
    with torch.no_grad():
        output = training.phases["tokenizer"](batch, {}, keep=_keep(training), step=0)
        training.phases["discriminator"](batch, output.carry, keep=_keep(training), step=0)
    training.after_step(0)
    assert training.averages["lecam"].value.abs().sum() == 0
    assert training.averages["centre"].value.abs().sum() == 0


def test_the_exported_tokenizer_loads_again(tmp_path):
    training = _training({"adversarial": {"kind": "none"}})
    training.export(training.model(), tmp_path)
    images = _batch(training)["image"]
    loaded = mergevq.load(tmp_path)
    model = training.model().eval()
    with torch.no_grad():
        keep = _keep(training)
        torch.testing.assert_close(
            loaded.decode(loaded.encode(images, keep=keep)), model.decode(model.encode(images, keep=keep))
        )


def test_parameters_without_a_term_are_frozen():
    training = _training({"adversarial": {"kind": "none"}, "recovery": {"weight": 0}})
    tokenizer = training.model()
    assert not any(
        p.requires_grad for module in (tokenizer.recovery, tokenizer.head) for p in module.parameters()
    )
    losses = _step(training, _batch(training), _keep(training))["tokenizer"].losses
    assert "recovery" not in losses
    assert "alignment" not in losses


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"adversarial": {"kind": "patch", "discriminator": {"num_layers": 6}}},
            r"discriminator\.num_layers is 6.*lower",
        ),
        ({"alignment": {"kind": "self", "student_size": 17}}, r"alignment\.student_size is 17: .*multiple"),
        ({"reconstruction": {"kind": "l3"}}, r"training\.reconstruction\.kind"),
        ({"commitment_weight": -1}, r"training\.commitment_weight"),
        ({"entrophy": {}}, r"unknown key 'training\.entrophy': did you mean 'entropy'"),
    ],
)
def test_impossible_terms_are_refused_naming_the_key(tree, words):
    with pytest.raises(InputError, match=words):
        _training(tree)


def test_a_teacher_of_another_width_is_refused_with_the_width_to_set(tmp_path):
    save_classifier(StandInClassifier(StandInConfig(classes=3, width=24, num_stages=1)), tmp_path)
    with pytest.raises(InputError, match=r"teacher's features have 24 numbers.*set model.head.out=24"):
        _training(
            {"adversarial": {"kind": "none"}, "alignment": {"kind": "stand_in", "directory": str(tmp_path)}}
        )


@pytest.mark.parametrize(
    ("variant", "recovery", "alignment"), [("g", 0.5, 0.1), ("gr", 0.5, 1.0), ("r", 1.0, 1.0)]
)
def test_presets_hold_the_published_weights_and_need_only_the_files(files, variant, recovery, alignment):
    own = {
        "perceptual": {"backbone": "vgg.pth", "heads": "heads.pth"},
        "alignment": {"weights": "dinov2.pth"},
    }
    release = parse(TokenizerTrainingConfig, merged(loss_preset("release", variant), own))
    paper = parse(TokenizerTrainingConfig, merged(loss_preset("paper", variant), own))
    assert (release.reconstruction.kind, release.perceptual.weight, release.adversarial.weight) == (
        "l1",
        1.0,
        0.1,
    )
    assert (paper.reconstruction.kind, paper.perceptual.weight, paper.adversarial.weight) == ("l2", 0.7, 0.8)
    assert (release.adversarial.adaptive, paper.adversarial.adaptive) == (False, True)
    for preset in (release, paper):
        assert (preset.recovery.weight, preset.alignment.weight) == (recovery, alignment)
        assert (preset.commitment_weight, preset.entropy.weight, preset.adversarial.lecam_weight) == (
            0.25,
            0.1,
            0.01,
        )
        assert (preset.alignment.loss, preset.alignment.temperature) == ("kl", 4.0)
        assert preset.views_needed(256) == (224, 224)
    with pytest.raises(InputError, match=r"missing key 'perceptual\.backbone'"):
        parse(TokenizerTrainingConfig, loss_preset("release", variant))
    with pytest.raises(InputError, match="no loss preset 'relese'"):
        loss_preset("relese", variant)


def test_a_scalar_quantizer_trains_with_the_same_recipe():
    training = _training(
        {"adversarial": {"kind": "none"}}, overrides={"quantizer": {"kind": "fsq", "levels": [4, 4, 3]}}
    )
    losses = _step(training, _batch(training), _keep(training))["tokenizer"].losses
    assert losses["sample_entropy"] == losses["commitment"] == 0
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in training.parameters() if p.requires_grad
    )


def test_a_smaller_view_is_merged_in_the_same_proportion_and_never_below_what_is_reachable():
    training = _training(
        {"adversarial": {"kind": "none"}, "alignment": {"kind": "self", "prototypes": 8, "student_size": 8}}
    )
    tokenizer = training.model()
    seen = []
    encode_summary = tokenizer.encode_summary

    def watched(images, keep, **options):
        seen.append((images.shape[-1], keep))
        return encode_summary(images, keep, **options)

    tokenizer.encode_summary = watched
    assert tokenizer.grid_tokens == 16
    lowest = reachable(16, tokenizer.config.encoder.depth).start
    for keep in (16, 8, lowest):
        training.phases["tokenizer"](_batch(training), {}, keep=keep, step=0)
    floor = reachable(4, tokenizer.config.encoder.depth).start
    assert seen == [(8, 4), (8, 2), (8, max(floor, round(lowest / 4)))]


@pytest.mark.parametrize(
    ("overrides", "tree", "words"),
    [
        (
            {"recovery": None},
            {},
            r"training\.recovery\.weight is 0\.5, but the tokenizer has no recovery: set it to 0",
        ),
        (
            {"head": None},
            {"alignment": {"kind": "self"}},
            r"training\.alignment: the tokenizer has no summary head",
        ),
    ],
)
def test_a_term_whose_part_the_tokenizer_lacks_is_refused(overrides, tree, words):
    with pytest.raises(InputError, match=words):
        _training({"adversarial": {"kind": "none"}, **tree}, overrides=overrides)


def test_a_tokenizer_without_recovery_and_head_trains():
    tree = {"adversarial": {"kind": "none"}, "recovery": {"weight": 0}}
    training = _training(tree, overrides={"recovery": None, "head": None})
    _step(training, _batch(training), _keep(training))
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in training.parameters() if p.requires_grad
    )


def test_recovery_reaches_the_encoder_unless_it_is_detached():
    lengths = []
    for detach in (False, True):
        tree = {
            "adversarial": {"kind": "none"},
            "reconstruction": {"weight": 0},
            "commitment_weight": 0,
            "entropy": {"weight": 0},
            "recovery": {"weight": 1, "detach": detach},
        }
        training = _training(tree)
        training.phases["tokenizer"](_batch(training), {}, keep=_keep(training), step=0).total.backward()
        tokenizer = training.model()
        lengths.append(tokenizer.to_latents["project"].weight.grad.norm())
        assert sum(p.grad.norm() for p in tokenizer.recovery.parameters()) > 0
    assert lengths[0] > 0
    assert lengths[1] == 0


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["test_g", "test_gr", "test_r"])
def test_recomputing_norms_gives_the_same_gradients_and_repeats_no_convolution(files, preset):
    found = []
    for recompute in (False, True):
        training = _training(_trees(files)["self-distillation, adaptive"], preset)
        training.model().recompute(recompute)
        with Operations() as operations:
            _step(training, _batch(training), _keep(training))
        gradients = {name: p.grad for name, p in training.named_parameters() if p.grad is not None}
        found.append((operations.counts, gradients))
    (plain, one), (spared, other) = found
    assert one.keys() == other.keys()
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())
    assert spared[torch.ops.aten.convolution] == plain[torch.ops.aten.convolution]
    assert spared[torch.ops.aten.native_group_norm] > plain[torch.ops.aten.native_group_norm]


def test_recomputing_takes_a_second_view_in_bfloat16_whose_weights_were_cast_before(files):
    found = []
    for recompute in (False, True):
        training = _training(_trees(files)["self-distillation, adaptive"], "test_gr")
        training.model().recompute(recompute)
        batch, phase = _batch(training), training.phases["tokenizer"]
        with torch.autocast("cpu", torch.bfloat16):
            output = phase(batch, {}, keep=_keep(training), step=0)
        output.total.backward()  # as the loop does, after the casts are forgotten
        found.append({name: p.grad for name, p in training.model().named_parameters() if p.grad is not None})
    one, other = found
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        if "conv" in name:  # rounded in another order: each view's gradient by itself
            difference = (gradient - other[name]).norm()
            assert difference <= 0.05 * gradient.norm() + 1e-8, name
