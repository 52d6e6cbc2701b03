"""Training of the stand-in teacher: classification of labelled images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from mergevq.config import config
from mergevq.losses.classification import accuracy, classification_loss
from mergevq.number_types import ProperFraction
from mergevq.teachers.stand_in import StandInClassifier, save_classifier
from mergevq.training.protocol import Output, Training


@config
class ClassifierTrainingConfig:
    """The loss of the stand-in teacher's training."""

    label_smoothing: ProperFraction = 0.0


class ClassifierPhase(nn.Module):
    """The classifier with its loss."""

    def __init__(self, classifier: StandInClassifier, config: ClassifierTrainingConfig) -> None:
        super().__init__()
        self.classifier = classifier
        self.config = config

    def forward(self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int, step: int) -> Output:
        del carry, keep, step
        logits = self.classifier(batch["image"])
        loss = classification_loss(logits, batch["label"], self.config.label_smoothing)
        return Output(
            total=loss, losses={"total": loss.detach(), "accuracy": accuracy(logits, batch["label"])}
        )


class ClassifierTraining(Training):
    """The training of a stand-in teacher, in one phase `classifier`; the loop's kept count is ignored."""

    def __init__(self, classifier: StandInClassifier, config: ClassifierTrainingConfig | None = None) -> None:
        super().__init__()
        phase = ClassifierPhase(classifier, config or ClassifierTrainingConfig())
        self.phases = nn.ModuleDict({"classifier": phase})

    def model(self) -> StandInClassifier:
        phase = self.phases["classifier"]
        assert isinstance(phase, ClassifierPhase)
        return phase.classifier

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, StandInClassifier)
        save_classifier(model, directory)
