"""Alignment of the summary token with a teacher: the paper's equation 10 and its alternatives."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config
from mergevq.image_size import ImageSize, height_width, parse_size
from mergevq.losses.classification import accuracy, classification_loss
from mergevq.number_types import ProperFraction
from mergevq.paths import ExportPath
from mergevq.pretrained import TimmNetworkConfig

Matching = Literal["kl", "mse", "cosine"]


class ViewSizes(NamedTuple):
    """The sizes in pixels of the further views that a step needs; None where it needs none."""

    student: ImageSize | None
    teacher: ImageSize | None


@config
class NoAlignmentConfig:
    """The summary token is trained by reconstruction alone; the tokenizer's head is not trained."""

    kind: Literal["none"] = "none"
    weight: Literal[0] = 0

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        del image_size
        return ViewSizes(None, None)


@config
class TimmAlignmentConfig(TimmNetworkConfig):
    """Match a frozen network of timm's, DINOv2 by default, on another view of the image.

    `kl` compares softmax(feature / temperature) of both and scales by temperature squared. The student sees
    its own random view of `student_size` (by default 7/8 of each side where both are multiples of 16: 224
    for 256, otherwise the image's size), the teacher one of `teacher_size`.
    """

    kind: Literal["timm"] = "timm"
    model: str = "vit_base_patch14_dinov2"
    weight: pydantic.NonNegativeFloat = 1.0
    loss: Matching = "kl"
    temperature: pydantic.PositiveFloat = 4.0
    student_size: ImageSize | None = None
    teacher_size: ImageSize = 224

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        height, width = (side * 7 // 8 for side in height_width(image_size))
        smaller = image_size if height % 16 or width % 16 else parse_size((height, width))
        return ViewSizes(self.student_size or smaller, self.teacher_size)


@config
class SelfAlignmentConfig:
    """Self-distillation (DINO): match the encoder's own moving average on another view; works offline.

    Head outputs are compared with `prototypes` learned directions. The average is `momentum` * itself + the
    rest per step. What keeps it from collapsing: the teacher's logits are centred on their moving average
    (`centre_momentum`) and its temperature is sharper than the student's.
    """

    kind: Literal["self"] = "self"
    weight: pydantic.NonNegativeFloat = 1.0
    prototypes: Annotated[int, pydantic.Field(ge=2)] = 1024
    momentum: ProperFraction = 0.99
    centre_momentum: ProperFraction = 0.9
    student_temperature: pydantic.PositiveFloat = 0.1
    teacher_temperature: pydantic.PositiveFloat = 0.04
    student_size: ImageSize | None = None
    teacher_size: ImageSize | None = None

    def __post_init__(self) -> None:
        if self.teacher_temperature >= self.student_temperature:
            raise ValueError(
                f"teacher_temperature {self.teacher_temperature} must be below student_temperature "
                f"{self.student_temperature}: a teacher that is not sharper collapses"
            )

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        return ViewSizes(self.student_size or image_size, self.teacher_size or image_size)


@config
class SupervisedAlignmentConfig:
    """Cross-entropy of a linear classifier on the summary head: the tokenizer sees the labels."""

    classes: Annotated[int, pydantic.Field(ge=2)]
    kind: Literal["supervised"] = "supervised"
    weight: pydantic.NonNegativeFloat = 1.0
    label_smoothing: ProperFraction = 0.1
    student_size: ImageSize | None = None

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        return ViewSizes(self.student_size or image_size, None)


@config
class StandInAlignmentConfig:
    """Match the layer-normalised penultimate feature of a stand-in teacher, given as its export.

    The teacher was trained on labels: what aligns with it measures distillation, not self-supervision.
    """

    directory: ExportPath
    kind: Literal["stand_in"] = "stand_in"
    weight: pydantic.NonNegativeFloat = 0.5
    loss: Matching = "cosine"
    temperature: pydantic.PositiveFloat = 4.0
    student_size: ImageSize | None = None
    teacher_size: ImageSize | None = None

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        return ViewSizes(self.student_size or image_size, self.teacher_size or image_size)


AlignmentConfig = Annotated[
    NoAlignmentConfig
    | TimmAlignmentConfig
    | SelfAlignmentConfig
    | SupervisedAlignmentConfig
    | StandInAlignmentConfig,
    pydantic.Field(discriminator="kind"),
]


def matching_loss(kind: Matching, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The float32 scalar that brings features (B, D) of the student to the teacher's, a mean over B."""
    student, teacher = student.float(), teacher.float()
    match kind:
        case "kl":
            wanted = F.log_softmax(teacher / temperature, dim=-1)
            found = F.log_softmax(student / temperature, dim=-1)
            return F.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2
        case "mse":
            return F.mse_loss(student, teacher)
        case "cosine":
            return 1 - (unit(student) * unit(teacher)).sum(-1).mean()


def unit(features: Tensor, floor: float = 0.1) -> Tensor:
    """Features (B, D) at length 1, float32; those much shorter than `floor` keep their direction but stay
    short.

    A new summary head gives features of length 1e-8, at which an exact normalisation has gradients of 1e8:
    they would fill an optimizer's moments and take up all of a clipped gradient. With the floor they are at
    most 1 / floor.
    """
    features = features.float()
    return features / (features.square().sum(-1, keepdim=True) + floor**2).sqrt()


class MatchTeacher(nn.Module):
    """`matching_loss` with the features of a frozen teacher on its own view."""

    def __init__(self, term: TimmAlignmentConfig | StandInAlignmentConfig, teacher: nn.Module) -> None:
        super().__init__()
        self.term = term
        self.teacher = teacher

    def forward(self, student: Tensor, teacher_view: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(teacher_view)
        return matching_loss(self.term.loss, student, target, self.term.temperature)


class Prototypes(nn.Module):
    """The cosine similarities (B, P), float32, of features (B, D) with P learned directions.

    `seed` alone decides the initial directions.
    """

    def __init__(self, dim: int, num_prototypes: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.directions = nn.Parameter(torch.randn(num_prototypes, dim, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return unit(features) @ F.normalize(self.directions.float(), dim=-1).T


def self_distillation_loss(
    term: SelfAlignmentConfig, student: Tensor, teacher: Tensor, centre: Tensor
) -> Tensor:
    """DINO's cross-entropy: logits (B, P) of student and teacher and the centre (P,), float32, to a scalar.

    The teacher's logits are detached, centred and sharpened (Caron et al. 2021, section 3.1).
    """
    target = F.softmax((teacher.detach() - centre) / term.teacher_temperature, dim=-1)
    return -(target * F.log_softmax(student / term.student_temperature, dim=-1)).sum(-1).mean()


class SupervisedTerm(nn.Module):
    """The linear classifier of `SupervisedAlignmentConfig`; `seed` alone decides its initial weights."""

    def __init__(self, term: SupervisedAlignmentConfig, dim: int, *, seed: int) -> None:
        super().__init__()
        self.term = term
        self.classifier = nn.Linear(dim, term.classes)
        with torch.no_grad():
            self.classifier.weight.normal_(0, dim**-0.5, generator=torch.Generator().manual_seed(seed))
            self.classifier.bias.zero_()

    def forward(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the accuracy, float32 scalars, for head outputs (B, D) and labels (B,), -1 = none."""
        logits = self.classifier(student)
        loss = classification_loss(logits, labels, self.term.label_smoothing)
        return loss, accuracy(logits, labels)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """The spread of features (B, D): 1 when their directions are independent, 0 when all are the same.

    The standard deviation over the batch of the unit-length features, averaged over D and scaled by sqrt(D).
    """
    directions = F.normalize(features.float(), dim=-1)
    return directions.std(dim=0, correction=0).mean() * features.shape[-1] ** 0.5


@torch.no_grad()
def feature_rank(features: Tensor) -> Tensor:
    """The effective number of dimensions that features (B, D) vary in: at least 1, at most min(B - 1, D).

    The participation ratio (sum of the covariance's eigenvalues)^2 / sum of their squares, which needs no
    decomposition and so no host synchronisation. 0 when the features do not vary at all.
    """
    features = features.float()
    features = features / features.square().mean().sqrt().clamp(min=1e-30)  # squares of squares underflow
    centred = features - features.mean(dim=0)
    with torch.autocast(features.device.type, enabled=False):
        gram = centred @ centred.T
    # Below this share of the whole the variation is rounding.
    varies = gram.trace() > 1e-10 * features.square().sum()
    return varies * gram.trace().square() / gram.square().sum().clamp(min=1e-30)
