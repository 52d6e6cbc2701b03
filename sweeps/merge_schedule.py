"""Where along the depth should tokens merge: evenly, early or late?

The inflection of the per-layer schedule: -0.5 is published (ToMe's constant schedule is 0).

    mergevq sweep sweeps/merge_schedule.py
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, mean_log_frechet, mean_probe

SWEEP = Sweep(
    name="merge_schedule",
    question="Where along the depth should tokens merge?",
    recipe="demo",
    space={"task.model.encoder.inflection": choice(-1.0, -0.5, 0.0, 0.5, 1.0)},
    search=Grid(),
    objectives=(mean_log_frechet(), mean_probe()),
)
