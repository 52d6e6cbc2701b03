"""The demo: pictures, a stand-in teacher, a tokenizer, its curve. Every number comes from training that happens here.

`make demo` runs it; about ten minutes on two cores. Anything it makes lies under runs/ (or MERGEVQ_HOME).
"""

import shlex
import sys
import time

from mergevq_platform import cli
from mergevq_platform.places import places
from mergevq_platform.runs import Run


def main() -> None:
    began = time.monotonic()
    home = places().home
    stamp = time.strftime("%Y%m%d-%H%M%S")
    pictures = home / "data" / "shapes"
    if not (pictures / "manifest.json").is_file():
        verb("1/3  pictures: 12 classes that only their shape tells apart", "data", "shapes", str(pictures))
    teacher = f"shapes_teacher-{stamp}"
    verb(
        "2/3  the stand-in teacher: a small network that learns the labels (DINOv2 takes its place where it is at hand)",
        *("train", "shapes_teacher", "--name", teacher, f"data.path={pictures}"),
    )
    weights = Run.find(teacher, home=home).newest_checkpoint()
    tokenizer = f"demo-{stamp}"
    verb(
        "3/3  the tokenizer: merging, LFQ, alignment, source recovery, GAN; then its curve at six kept counts",
        *("train", "demo", "--name", tokenizer, f"data.path={pictures}"),
        f"task.losses.alignment.directory={weights}",
    )
    minutes = (time.monotonic() - began) / 60
    print(
        f"\ndone in {minutes:.1f} minutes. The curve in MLflow: {shlex.quote(sys.executable)} -m mergevq_platform.cli ui"
    )


def verb(title: str, *arguments: str) -> None:
    """Run one verb of the command line; stop the demo with its status if it fails."""
    print(f"\n== {title}\n   mergevq {shlex.join(arguments)}", flush=True)
    status = cli.run(arguments)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
