"""The demo: images, a stand-in teacher, a tokenizer, its curve. Every number comes from training that happens here.

`make demo` runs it; about ten minutes on two cores. Anything it makes lies under runs/ (or MERGEVQ_HOME). Images and
teacher are made once: a second demo trains a second tokenizer on them.
"""

import shlex
import sys
import time
from pathlib import Path

from mergevq_platform import cli
from mergevq_platform.storage.settings import read_settings

TEACHER = "shapes_teacher"  # a recipe, and the run that the demo's own recipe looks for


def main() -> None:
    began = time.monotonic()
    home = read_settings().home
    stamp = time.strftime("%Y%m%d-%H%M%S")
    images = home / "data" / "shapes"
    if not (images / "manifest.json").is_file():
        verb("1/3  images: 12 classes that only their shape tells apart", "data", "shapes", str(images))
    weights = home / "ray" / TEACHER / "checkpoint_000000500"
    if not (weights / "checkpoint.json").is_file():
        begun = (home / "ray" / TEACHER).exists()
        verb(
            "2/3  the stand-in teacher: a small network that learns the labels (DINOv2 takes its place where it is at hand)",
            *("train", *(("--resume", TEACHER) if begun else (TEACHER, "--name", TEACHER))),
            f"data.path={images}",
        )
    tokenizer = f"demo-{stamp}"
    verb(
        "3/3  the tokenizer: merging, LFQ, alignment, source recovery, GAN; then its curve at six kept counts",
        *("train", "demo", "--name", tokenizer, f"data.path={images}"),
        f"task.losses.alignment.directory={weights}",
    )
    minutes = (time.monotonic() - began) / 60
    command = shlex.quote(str(Path(sys.executable).with_name("mergevq")))
    print(f"\ndone in {minutes:.1f} minutes. In this folder, `mergevq ui` is {command} ui")


def verb(title: str, *arguments: str) -> None:
    """Run one verb of the command line; stop the demo with its status if it fails."""
    print(f"\n== {title}\n   mergevq {shlex.join(arguments)}", flush=True)
    status = cli.run(arguments)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
