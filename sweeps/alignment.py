"""What should the summary token be aligned with, and how strongly?

mergevq sweep sweeps/alignment.py
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, hypervolume, mean_log_frechet, mean_probe

TEACHER = "runs/ray/shapes_teacher/checkpoint_000000500"

SWEEP = Sweep(
    name="alignment",
    question="What should the summary token be aligned with, and how strongly?",
    recipe="demo",
    space={
        "task.losses.alignment": choice(
            {"kind": "none"},
            {"kind": "self", "prototypes": 256, "weight": choice(0.1, 0.5)},
            {"kind": "stand_in", "directory": TEACHER, "weight": choice(0.5, 2.0)},
            {"kind": "supervised", "classes": 12, "weight": choice(0.1, 0.5)},
        ),
    },
    search=Grid(),
    objectives=(hypervolume(), mean_log_frechet(), mean_probe()),
)
