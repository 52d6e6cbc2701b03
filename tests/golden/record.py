"""Record the golden files: `python tests/golden/record.py [--out DIR] [--only NAME,…]`.

Without `--out` the committed recording is written anew, which only a change that is meant to change results needs. To prove that a
change of structure changes no result on a machine of any kind: `record.py --out DIR` on the tree before, then
`MERGEVQ_GOLDEN=DIR pytest tests/golden` on the tree after. The tree that holds this file is the one that is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDED = HERE / "recorded"
MACHINE = "machine"


def main() -> None:
    """Write the asked sections into a directory, each in a file of its name, and what recorded them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RECORDED)
    parser.add_argument("--only", help="names of sections, with commas between them")
    parser.add_argument("--ray", action="store_true", help="record the small sweep on Ray, and nothing else")
    parser.add_argument("--fixtures", action="store_true", help="make the committed fixtures, once")
    given = parser.parse_args()
    out = given.out.resolve()
    with tempfile.TemporaryDirectory(prefix="mergevq-golden-") as place:
        os.chdir(place)
        if given.ray:
            _record_on_ray(out, Path(place))
        else:
            _forked(_record, out, given.only.split(",") if given.only else None, given.fixtures)
        os.chdir(ROOT)


def _forked(work: Callable[..., None], *arguments: Any) -> None:
    """Run in a process forked from one that has imported the product and computed nothing, as are the ranks that it starts."""
    # The last takes seconds as well, and every optimizer imports it.
    multiprocessing.set_forkserver_preload(["sections", "torch._dynamo"])
    process = multiprocessing.get_context("forkserver").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _record(out: Path, only: list[str] | None, making: bool) -> None:
    import compare
    import fixtures
    import machine
    import product

    assert product.SOURCE == ROOT, f"{product.SOURCE} would be measured, not {ROOT}"
    warnings.filterwarnings("ignore", message=".*covariance has no full rank")
    machine.one_thread()
    told = machine.fingerprint()
    print("\n".join(f"{name}: {value}" for name, value in told.items()))
    if making:
        fixtures.make()
        return
    import sections

    fixtures.lay_out(Path.cwd())
    seconds: dict[str, float] = {}
    for name in only or sections.SECTIONS:
        began = time.monotonic()
        compare.write(out, name, sections.SECTIONS[name]())
        seconds[name] = time.monotonic() - began
        print(f"{name}: {seconds[name]:.1f} s, {(out / f'{name}.json').stat().st_size:,} bytes", flush=True)
    compare.write(out, MACHINE, told)
    print(f"recorded in {out} in {sum(seconds.values()):.1f} s")


def _record_on_ray(out: Path, home: Path) -> None:
    from tests.golden import compare, on_ray, product

    with product.ray_cluster(home):
        compare.write(out, on_ray.NAME, on_ray.swept(home, "golden"))


if __name__ == "__main__":
    # Before anything reads them: sums in one order, and this tree before any installed one.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    for name in [name for name in os.environ if name.startswith("MERGEVQ_")]:
        del os.environ[name]
    sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(HERE)]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # for the processes of two workers
    main()
