"""How many kept tokens should a random-order generator write? Fewer are fewer to predict, and carry less of the image.

Each count alone and both together, measured at the most often trained, on the codes of `make demo-generate`:

    mergevq sweep sweeps/generator_tokens.py task.codes=runs/codes/NAME
    mergevq sweep sweeps/generator_tokens.py --recipe randar_l_gr task.model.keeps=[36,64] data.path=data/imagenet task.codes=CODES
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, sample_class_top1, sample_frechet

SWEEP = Sweep(
    name="generator_tokens",
    question="How many kept tokens should a random-order generator write?",
    recipe="demo_randar",
    overrides=("task.model.keeps=[36,64]", "task.generation.keep=null"),
    space={"task.keep": {"kind": "list", "counts": choice([36], [64], [36, 64])}},
    search=Grid(),
    objectives=(sample_frechet(), sample_class_top1()),
)
