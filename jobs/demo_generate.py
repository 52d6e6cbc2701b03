"""The generators' demo: the demo's images as codes, a small MergeAR and a small random-order generator, what they generate.

`make demo-generate` runs it after `make demo`; under twelve minutes on two cores. It takes the newest tokenizer of the demo.
Every number comes from training that happens here; codes are made once for a tokenizer.
"""

import sys
import time
from pathlib import Path

from demo import verb

from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.settings import read_settings

KEEPS = ("36", "64")  # of the generators' recipes


def main() -> None:
    began = time.monotonic()
    home = read_settings().home
    tokenizer = newest_tokenizer(home)
    images = home / "data" / "shapes"
    step = tokenizer.name.removeprefix(checkpoints.PREFIX)
    codes = home / "codes" / "-".join((tokenizer.parent.name, step, *KEEPS))
    if not (codes / "manifest.json").is_file():
        verb(
            "1/5  codes: every image and its mirror image through the frozen tokenizer, once",
            *("tokenize", str(tokenizer), str(codes), "--data", str(images)),
            *("--keep", *KEEPS, "--workers", "2"),
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    runs = {}
    for number, (recipe, what) in enumerate(
        (
            ("demo_mergear", "MergeAR: 64 cells in raster order, repeated codes hidden; then evaluated"),
            ("demo_randar", "random order: 64 kept tokens, placed by Source Recovery; then evaluated"),
        ),
        2,
    ):
        run = f"{recipe}-{stamp}"
        verb(
            f"{number}/5  {what}",
            *("train", recipe, "--name", run, f"data.path={images}", f"task.codes={codes}"),
        )
        report = GeneratorReport.load(home / "ray" / run / "generation" / "report.json")
        runs[run] = f"{report.best['scale']:g}"
    for number, (run, scale) in enumerate(runs.items(), 4):
        verb(
            f"{number}/5  images of every class at guidance {scale}, the scale of the smallest Fréchet distance",
            *("generate", run, "--num", "96", "--cfg", scale, "--seed", "1"),
            *("--out", str(home / "images" / run)),
        )
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    for run in runs:
        folder = home / "ray" / run / "generation"
        print(
            f"{run}: {folder / 'samples.png'}  {folder / 'neighbours.png'}  {home / 'images' / run / 'contact_sheet.png'}"
        )


def newest_tokenizer(home: Path) -> Path:
    """The newest checkpoint of the demo's newest tokenizer run; stops with what to do where there is none."""
    found = [
        Path(checkpoints.listed(str(run))[0])
        for run in sorted((home / "ray").glob("demo-2*"))
        if checkpoints.listed(str(run))
    ]
    if not found:
        sys.exit(f"no tokenizer of the demo in {home / 'ray'}: run `make demo` first")
    return found[-1]


if __name__ == "__main__":
    main()
