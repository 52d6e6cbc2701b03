"""Does a sweep work on this machine? Eight short trials of four families, the hopeless stopped early.

Minutes on two cores; needs the demo's images (`mergevq data shapes runs/data/shapes`, or `make demo`):

    mergevq sweep sweeps/smoke.py
"""

from mergevq_platform.sweeps import EarlyStopping, Grid, Rung, Sweep, choice, mean_log_frechet, mean_probe

SWEEP = Sweep(
    name="smoke",
    question="Does a sweep work here? (short trainings; no finding about merging)",
    recipe="demo",
    overrides=(
        "steps=160",
        "optimizer.schedule.warmup_steps=20",
        "task.losses.alignment={kind: supervised, classes: 12, weight: 0.5}",
        "task.losses.adversarial.start_step=120",
        "evaluation.images=500",
        "evaluation.probe_images=1500",
        "evaluation.keeps=[9,16,36,64]",
        "evaluation.untrained_baseline=false",
        "cluster.workers=1",
    ),
    space={
        "task.keep": choice(
            {"kind": "exponential", "merge_ratio": [0.0, 0.86], "rate": choice(0.5, 2.0)},
            {
                "kind": "gaussian",
                "merge_ratio": [0.0, 0.86],
                "peak_merge_ratio": choice(0.4375, 0.75),
                "sigma": 1.0,
            },
            {"kind": "uniform", "merge_ratio": [0.0, 0.86], "square": choice(True, False)},
            {"kind": "list", "merge_ratios": choice([0.0], [0.75])},
        ),
    },
    search=Grid(),
    stopping=EarlyStopping(every_steps=40, factor=2),
    rung=Rung(keeps=(16,), images=128, probe_images=256),
    objectives=(mean_log_frechet(), mean_probe()),
)
