"""Two ranks that share a batch, evenly or not, and one rank that has all of it train alike, with every term on."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import mergevq
import ranks
from mergevq.teachers.stand_in import StandInClassifier, StandInConfig, save_classifier
from mergevq.training.tokenizer import build_training

TERMS = ("self-distillation", "supervised")


def _tree(terms, directory):
    if terms == "supervised":
        return {"adversarial": {"kind": "none"}, "alignment": {"kind": "supervised", "classes": 3}}
    return {
        "reconstruction": {"kind": "l1_l2"},
        "perceptual": {"kind": "stand_in", "directory": str(directory)},
        "adversarial": {
            "kind": "patch",
            "adaptive": True,
            "weight": 0.8,
            "lecam_decay": 0.5,
            "lecam_weight": 1.0,
            "discriminator": {"channels": 8, "num_layers": 2, "norm": "group"},
        },
        "entropy": {"weight": 1.0},
        "alignment": {"kind": "self", "prototypes": 16, "centre_momentum": 0.5},
    }


GLOBAL_BATCH = 4
CUTS = {"even": 2, "uneven": 3}  # images of rank 0; the rest is rank 1's
MICRO_BATCHES = 2
ROUNDING = 5e-5  # the entropies are float32, and their temperature makes 400 of every 1


def _batches(training, step):
    """The micro-batches of a step, at the global batch size, the labels unevenly spread."""
    generator = torch.Generator().manual_seed(step)
    side = training.model().config.image_size
    views = training.config.views_needed(side)
    for _ in range(MICRO_BATCHES):
        sizes = {"image": side, "student": views.student, "teacher": views.teacher}
        batch = {
            name: torch.rand(GLOBAL_BATCH, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1
            for name, size in sizes.items()
            if size is not None
        }
        yield batch | {"label": torch.tensor([2, 0, 1, -1])}


def _gradients(tree, rank, world_size, cut=GLOBAL_BATCH):
    """The averaged gradients and the running averages after two accumulated steps, by name."""
    torch.manual_seed(0)
    # Group norms of a new network's nearly constant maps amplify float32 rounding a thousandfold.
    training = build_training(tree, mergevq.create("test_gr")).double()
    phases = dict(training.phases.items())
    if dist.is_initialized():
        phases = {name: DistributedDataParallel(phase) for name, phase in phases.items()}
    optimizers = [
        torch.optim.SGD([p for p in phase.parameters() if p.requires_grad], lr=0.02)
        for phase in training.phases.values()
    ]
    mine = slice(0, cut) if rank == 0 else slice(cut, None)
    weight = world_size * len(range(GLOBAL_BATCH)[mine]) / GLOBAL_BATCH
    for step in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for batch in _batches(training, step):
            part = {name: value[mine] for name, value in batch.items()}
            carry = {}
            for phase in phases.values():
                output = phase(part, carry, keep=training.model().grid_tokens // 2, step=step)
                (output.total * weight / MICRO_BATCHES).backward()
                carry |= output.carry
        if step == 0:
            for optimizer in optimizers:
                optimizer.step()
        training.after_step(step)
    result = {name: p.grad for name, p in training.named_parameters() if p.requires_grad}
    return result | {name: average.value for name, average in training.averages.items()}


def _rank(rank, directory):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    try:
        results = {
            (terms, cut): _gradients(_tree(terms, directory), rank, 2, CUTS[cut])
            for terms in TERMS
            for cut in CUTS
        }
    finally:
        dist.destroy_process_group()
    torch.save(results, directory / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(1)
    save_classifier(StandInClassifier(StandInConfig(classes=3, width=8, num_stages=2)), directory)
    ranks.run(_rank, (directory,), 2)
    return directory, [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("terms", TERMS)
def test_two_ranks_have_the_gradients_of_one_rank_with_the_whole_batch(two_ranks, terms, cut):
    directory, ranks = two_ranks
    alone = _gradients(_tree(terms, directory), 0, 1)
    for results in ranks:
        together = results[terms, cut]
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                together[name], expected, rtol=0, atol=ROUNDING, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_comparison_would_notice_a_rank_that_keeps_to_itself(two_ranks):
    directory, ranks = two_ranks
    alone = _gradients(_tree("self-distillation", directory), 0, 2, CUTS["even"])
    together = ranks[0]["self-distillation", "even"]
    assert any((together[name] - value).abs().max() > 1e-3 for name, value in alone.items())
