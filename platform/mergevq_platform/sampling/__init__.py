"""Stage 2 at work: pictures of a trained generator, and what they are worth."""

from mergevq_platform.generation.evaluating import after_training, evaluate, record, write
from mergevq_platform.generation.judging import Judge, Measured, judge
from mergevq_platform.generation.maker import Maker, Sampler, chosen_classes, class_names, open_sampler
from mergevq_platform.generation.making import Order, make
from mergevq_platform.generator_report import GeneratorReport

__all__ = [
    "GeneratorReport",
    "Judge",
    "Maker",
    "Measured",
    "Order",
    "Sampler",
    "after_training",
    "chosen_classes",
    "class_names",
    "evaluate",
    "judge",
    "make",
    "open_sampler",
    "record",
    "write",
]
