"""How far back must MergeAR look beside the distinct codes? (The paper's section 4.1 takes a window of 2.)

One generator per window W, on the codes of `make demo-generate`, over two seeds:

    mergevq sweep sweeps/generator_window.py task.codes=runs/codes/NAME
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, sample_class_top1, sample_frechet

SWEEP = Sweep(
    name="generator_window",
    question="How far back must MergeAR look beside the distinct codes?",
    recipe="demo_mergear",
    space={"task.model.window": choice(1, 2, 4, 8)},
    search=Grid(seeds=2),
    objectives=(sample_frechet(), sample_class_top1()),
)
