"""How strongly should each loss term pull?

mergevq sweep sweeps/loss_weights.py
"""

from mergevq_platform.sweeps import (
    EarlyStopping,
    Rung,
    Sweep,
    Tpe,
    hypervolume,
    log_uniform,
    mean_log_frechet,
    mean_probe,
)

SWEEP = Sweep(
    name="loss_weights",
    question="How strongly should each loss term pull?",
    recipe="demo",
    space={
        "task.losses.entropy.weight": log_uniform(0.002, 0.2),
        "task.losses.commitment_weight": log_uniform(0.01, 0.5),
        "task.losses.recovery.weight": log_uniform(0.02, 1.0),
        "task.losses.alignment.weight": log_uniform(0.3, 5.0),
        "task.losses.adversarial.weight": log_uniform(0.002, 0.2),
    },
    search=Tpe(trials=24),
    stopping=EarlyStopping(every_steps=150),
    rung=Rung(keeps=(9, 36)),
    objectives=(hypervolume(), mean_log_frechet(), mean_probe()),
)
