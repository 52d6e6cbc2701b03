"""What does training at one kept count cost at every other? (The paper's Table 4 and Figure 3.)

One tokenizer per count, each measured at all counts, over three seeds (15 trainings, 5 minutes each on 2 cores):

    mergevq sweep sweeps/keep_counts.py
    mergevq sweep sweeps/keep_counts.py --recipe fig3_gr_128 data.path=data/imagenet evaluation.keeps=[16,36,64]

The demo's teacher has seen the labels that the probe asks for. With a teacher that has seen other classes alone:

    mergevq data shapes runs/data/six --classes ring triangle pentagon cross half-disc arrow
    mergevq data shapes runs/data/others --classes disc square diamond star pill heart
    mergevq train shapes_teacher --name others_teacher data.path=runs/data/others task.model.classes=6
    mergevq sweep sweeps/keep_counts.py data.path=runs/data/six task.losses.alignment.directory=runs/ray/others_teacher/checkpoint_000000500

and without any: 'task.losses.alignment={kind: self, prototypes: 256, weight: 0.5}'. docs/paper.md has what a GPU found.
"""

from mergevq_platform.sweeps import Grid, Sweep, choice, mean_log_frechet, mean_probe

SWEEP = Sweep(
    name="keep_counts",
    question="What does training at one kept count cost at every other?",
    recipe="demo",
    # Merge ratios: at the demo's 64 cells these keep 64, 36, 25, 16 and 9 tokens.
    space={"task.keep": {"kind": "list", "merge_ratios": choice([0.0], [0.4375], [0.609], [0.75], [0.86])}},
    search=Grid(seeds=3),
    objectives=(mean_log_frechet(), mean_probe()),
)
