"""What does training at one kept count cost at every other? (The paper's Table 4 and Figure 3.)

One tokenizer per count, each measured at all counts, over two seeds:

    mergevq sweep sweeps/keep_counts.py
    mergevq sweep sweeps/keep_counts.py --recipe fig3_gr_128 data.path=data/imagenet evaluation.keeps=[16,36,64]
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, mean_log_frechet, mean_probe

SWEEP = Sweep(
    name="keep_counts",
    question="What does training at one kept count cost at every other?",
    recipe="demo",
    # Merge ratios: at the demo's 64 cells these keep 64, 36, 25, 16 and 9 tokens.
    space={"task.keep": {"kind": "list", "merge_ratios": choice([0.0], [0.4375], [0.609], [0.75], [0.86])}},
    search=Grid(seeds=2),
    objectives=(mean_log_frechet(), mean_probe()),
)
