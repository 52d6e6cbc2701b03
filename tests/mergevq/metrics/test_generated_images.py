"""Inception score, precision and recall, class balance and bits: small cases by hand, and what is refused."""

import math

import pytest
import torch

from mergevq.errors import InputError
from mergevq.metrics import ClassBalance, InceptionScore, bits_per_image, precision_recall
from mergevq.metrics.codes import partitions_bits
from mergevq.metrics.manifold import covered, radii


def score(logits: torch.Tensor, **options: object) -> InceptionScore:
    found = InceptionScore(len(logits), **options)  # type: ignore[arg-type]
    found.update(logits, torch.arange(len(logits)))
    return found


def test_certain_and_evenly_spread_answers_score_the_number_of_classes() -> None:
    certain = 100 * torch.eye(5).repeat(4, 1)
    assert score(certain, splits=1).compute().mean == pytest.approx(5)
    assert score(certain, splits=4, order="sequential").compute().mean == pytest.approx(5)
    undecided = torch.zeros(20, 5)
    assert score(undecided, splits=2).compute()[:3] == pytest.approx((1, 0, 1))
    one = torch.zeros(20, 5)
    one[:, 2] = 1000  # a class without doubt, others with none at all
    assert score(one, splits=1).compute().unsplit == pytest.approx(1)


def test_parts_in_any_order_and_hands_merge_to_the_same_score() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    whole = score(logits, splits=3).compute()
    parts = []
    for positions in torch.randperm(50).split(11):
        part = InceptionScore(50, splits=3)
        part.update(logits[positions], positions)
        parts.append(part)
    merged = parts[0]
    for part in reversed(parts[1:]):
        merged = part.merge(merged)
    assert merged.compute() == pytest.approx(whole, rel=1e-12)
    assert whole.images == 50
    assert whole.splits == 3


def test_a_score_of_other_images_than_were_announced_is_refused() -> None:
    part = InceptionScore(5, splits=1)
    part.update(torch.zeros(4, 3), torch.arange(4))
    with pytest.raises(InputError, match="was to be of 5 images but saw 4"):
        part.compute()
    with pytest.raises(InputError, match="outside the 5 images"):
        InceptionScore(5, splits=1).update(torch.zeros(1, 3), torch.tensor([5]))
    with pytest.raises(InputError, match="9 images cannot be scored in 10 splits"):
        InceptionScore(9)
    with pytest.raises(InputError, match="do not merge"):
        InceptionScore(20).merge(InceptionScore(20, order="sequential"))
    with pytest.raises(InputError, match="NaN"):
        score(torch.full((4, 3), torch.nan), splits=1).compute()


def by_hand(generated: torch.Tensor, reference: torch.Tensor, k: int) -> tuple[float, float]:
    def within(rows: torch.Tensor, bank: torch.Tensor) -> float:
        radius = torch.cdist(bank, bank).sort(1).values[:, k]
        return float((torch.cdist(rows, bank) <= radius).any(1).double().mean())

    return within(generated, reference), within(reference, generated)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [4, 7, 1000])
def test_precision_and_recall_are_those_of_the_definition(k: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(k)
    generated = torch.randn(60, 4, generator=generator).double() * 2 + 100
    reference = torch.randn(45, 4, generator=generator).double() + 100
    found = precision_recall(generated, reference, k=k, chunk=chunk)
    assert found[:2] == pytest.approx(by_hand(generated, reference, k))
    assert found[2:] == (60, 45, k)
    assert 0 < found.precision < found.recall <= 1


def test_rows_can_be_shared_out() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    whole = radii(x, x, chunk=8)
    torch.testing.assert_close(torch.cat([radii(part, x, chunk=8) for part in x.split(8)]), whole)
    assert covered(x, x, whole).all()


def test_manifolds_without_sense_are_refused() -> None:
    x = torch.randn(10, 4)
    with pytest.raises(InputError, match="3 generated images do not have 3 neighbours"):
        precision_recall(x[:3], x)
    with pytest.raises(InputError, match="of one extractor"):
        precision_recall(x, x[:, :3])
    with pytest.raises(InputError, match="reference features hold NaN"):
        precision_recall(x, x / 0 * 0)


def test_balance_says_how_even_the_classes_are() -> None:
    balance = ClassBalance(4)
    assert all(math.isnan(value) for value in balance.compute().values())
    balance.update(torch.tensor([0, 1, 2, 3]))
    assert balance.compute()["class_evenness"] == pytest.approx(1)
    balance.update(torch.tensor([0, 0, 0, 0]))
    assert balance.compute()["class_evenness"] < 0.8
    other = ClassBalance(4)
    other.update(torch.tensor([0, 0]))
    assert balance.merge(other).compute() == pytest.approx(
        {"class_coverage": 100, "class_evenness": balance.merge(other).compute()["class_evenness"]}
        | {"class_fewest": 1, "class_most": 7}
    )
    balance.update(torch.tensor([4]))
    with pytest.raises(InputError, match="class labels reach from 0 to 4: they must be 0 to 3"):
        balance.compute()


def test_bits_of_a_image_by_hand() -> None:
    assert partitions_bits(4, 2) == pytest.approx(math.log2(7))  # 4 singles with the rest, 3 pairs of pairs
    assert partitions_bits(256, 256) == partitions_bits(256, 1) == 0
    # For few clusters almost every assignment is a partition with named clusters: N log2 K - log2 K!.
    assert partitions_bits(1024, 4) == pytest.approx(1024 * 2 - math.log2(24), abs=1e-6)
    bits = bits_per_image(2, 4, code_bits=18, entropy_bits=10.5)
    assert bits == pytest.approx({"bits": 36, "bits_entropy": 21, "bits_source": math.log2(7)})
    with pytest.raises(InputError, match="4 cells cannot be parted into 5"):
        partitions_bits(4, 5)
