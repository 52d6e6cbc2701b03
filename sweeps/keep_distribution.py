"""Which distribution of kept-token counts buys the best trade-off at every count?

Four families over the same range of merge ratios, so that the question holds at any resolution:

    mergevq sweep sweeps/keep_distribution.py
    mergevq sweep sweeps/keep_distribution.py --recipe gr_256_d64 data.path=data/imagenet cluster.workers=8
"""

from mergevq_platform.sweeps import (
    FrontStopping,
    Rung,
    Sweep,
    Tpe,
    choice,
    mean_log_frechet,
    mean_probe,
    uniform,
)

RANGE = [0.0, 0.85]  # share of the tokens merged away: from none to all but 15%

SWEEP = Sweep(
    name="keep_distribution",
    question="Which distribution of kept counts buys the best trade-off at every count?",
    recipe="demo",
    space={
        "task.keep": choice(
            {"kind": "exponential", "merge_ratio": RANGE, "rate": uniform(0.2, 2.0)},
            {
                "kind": "gaussian",
                "merge_ratio": RANGE,
                "peak_merge_ratio": uniform(0.2, 0.8),
                "sigma": uniform(0.5, 2.0),
            },
            {"kind": "uniform", "merge_ratio": RANGE},
            {
                "kind": "list",
                "merge_ratios": choice(
                    [0.86, 0.75, 0.6, 0.44, 0.23, 0.0], [0.75, 0.44, 0.0], [0.86, 0.86, 0.6, 0.0]
                ),
            },
        ),
    },
    search=Tpe(trials=24),
    stopping=FrontStopping(every_steps=150),
    rung=Rung(keeps=(9, 36)),
    objectives=(mean_log_frechet(), mean_probe()),
)
