"""Our speed beside the code of others, which is run from the reader's own checkouts of it."""

from __future__ import annotations

import copy
import importlib
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import cpu_step
from benchmarks.cpu_step import StepProcess
from benchmarks.generation import LABEL, _generator, _multiplies_bfloat16, _sample
from benchmarks.timing import device, in_fresh_process, interleaved
from mergevq.errors import InputError

BATCH, CELLS, GUIDANCE = 4, 256, 2.0


@dataclass(frozen=True)
class Peer:
    """A repository of others, and the files by which a checkout of it is known."""

    name: str  # of its measurement and of the option that gives the checkout
    repository: str
    files: tuple[str, ...]

    def checkout(self, directory: Path | None) -> Path:
        """`directory` as an absolute path. Raises `InputError` where it is missing or is no checkout of this repository."""
        if directory is None:
            raise InputError(f"{self.name} needs --{self.name} DIR, a checkout of {self.repository}")
        for file in self.files:
            if not (directory / file).is_file():
                raise InputError(
                    f"--{self.name} {directory}: no checkout of {self.repository}, for it has no {file}"
                )
        return directory.resolve()


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llamagen",
            "github.com/FoundationVision/LlamaGen",
            ("autoregressive/models/gpt.py", "autoregressive/models/generate.py", "utils/drop_path.py"),
        ),
        Peer(
            "official",
            "github.com/ApexGen-X/MergeVQ",
            (
                "taming/modules/diffusionmodules/model_mergevq.py",
                "taming/modules/diffusionmodules/tome/merge.py",
                "taming/modules/vqvae/lookup_free_quantize.py",
                "taming/modules/losses/vqperceptual.py",
            ),
        ),
    )
}


def llamagen(checkout: Path) -> Iterator[str]:
    """256 codes of GPT-B by LlamaGen's own `generate`, eager as its sample script runs it, and of our `raster_b`, in turn."""
    times, parameters = in_fresh_process(_generation_times, checkout, CELLS)
    yield (
        f"{CELLS} codes, batch {BATCH}, guidance {GUIDANCE:g}, no top-k or top-p; LlamaGen's GPT-B: {LABEL}, vocabulary 16384, "
        f"{parameters['LlamaGen'] / 1e6:.0f} M parameters, its code unchanged; ours: raster_b {LABEL}, vocabulary 2^18, "
        f"{parameters['ours'] / 1e6:.0f} M parameters"
    )
    for (name, precision), seconds in times.items():
        ratios = [
            f"{other / seconds:.2f} x as fast as LlamaGen's own code in {others}"
            for (whose, others), other in times.items()
            if name == "ours" and whose == "LlamaGen"
        ]
        rate = f"{name}, {precision}: {seconds:.2f} s, {BATCH * CELLS / seconds:.0f} tokens/s"
        yield "; ".join([rate, *ratios])


def _generation_times(checkout: Path, cells: int) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
    """(seconds of each generator and precision, parameters of each generator); in a process that imports the peer's code."""
    from mergevq.generation import GuidanceConfig

    theirs, generate = _llamagen_generator(checkout, cells)
    ours = _generator("raster_b", grid_tokens=cells)
    labels = torch.arange(BATCH, device=device())

    def their_way(model: Any) -> Callable[[], Any]:
        return lambda: generate(
            model, labels, cells, cfg_scale=GUIDANCE, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True
        )

    ways: dict[tuple[str, str], Callable[[], Any]] = {}
    for dtype in (torch.float32, *([torch.bfloat16] if _multiplies_bfloat16() else [])):
        precision = str(dtype).removeprefix("torch.")
        ways["LlamaGen", precision] = their_way(copy.deepcopy(theirs).to(dtype))
        generator = copy.deepcopy(ours).to(dtype)
        ways["ours", precision] = _sample(generator, BATCH, guidance=GuidanceConfig(scale=GUIDANCE))
    parameters = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in (("LlamaGen", theirs), ("ours", ours))
    }
    return interleaved(ways, rounds=3), parameters


def _llamagen_generator(checkout: Path, cells: int) -> tuple[Any, Callable[..., Any]]:
    """LlamaGen's GPT-B for so many cells, and its function that generates."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PyTorch, at every use of `sdp_kernel`
    sys.path.insert(0, str(checkout))
    try:
        generate = importlib.import_module("autoregressive.models.generate").generate
        sizes = importlib.import_module("autoregressive.models.gpt").GPT_models
    except ImportError as error:
        raise InputError(f"--llamagen {checkout}: its code cannot be imported: {error}") from None
    torch.manual_seed(0)
    model = sizes["GPT-B"](
        vocab_size=16384, block_size=cells, num_classes=1000, cls_token_num=1, model_type="c2i"
    )
    torch.nn.init.normal_(model.output.weight, std=0.02)  # zero when built, as our heads are
    return model.to(device()).eval(), generate


class OfficialStep(StepProcess):
    """The official code's step in a process of its own."""

    def __init__(self, checkout: Path, precision: str) -> None:
        script = Path(__file__).with_name("official_step.py")
        sizes = (str(cpu_step.BATCH), str(cpu_step.KEEP), precision)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore::FutureWarning", str(script), str(checkout), *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers = [self._answer()]


def our_step(precision: str) -> StepProcess:
    """Our step on the same images' size, batch and kept count."""
    return StepProcess(cpu_step.HERE, precision, "contiguous")


def official(checkout: Path) -> Iterator[str]:
    """A stage-1 step of the official code and of ours on a CPU, each in processes of its own that step in turn: seconds and peaks."""
    precisions = ["float32", *(["bfloat16"] if _multiplies_bfloat16() else [])]
    begin: dict[tuple[str, str], Callable[[], StepProcess]] = {}
    for precision in precisions:
        begin["official", precision] = partial(OfficialStep, checkout, precision)
        begin["ours", precision] = partial(our_step, precision)
    times, peaks = cpu_step.stepped_in_turn(begin, warm_up=1)
    yield (
        f"stage-1 step {cpu_step.PRESET}, batch {cpu_step.BATCH}, keep {cpu_step.KEEP}, both updates, no LPIPS, no alignment; ours trains "
        f"Source Recovery besides, which the official code does not; {cpu_step.ROUNDS} steps of each in turn"
    )
    seconds = {way: statistics.median(values) for way, values in times.items()}
    for name, precision in seconds:
        yield _step_line(name, precision, seconds, peaks)


def _step_line(
    name: str, precision: str, seconds: dict[tuple[str, str], float], peaks: dict[tuple[str, str], float]
) -> str:
    mine = name, precision
    ratios = [
        f"{seconds[other] / seconds[mine]:.2f} x as fast as the official code in {other[1]}, "
        f"{peaks[mine] / peaks[other]:.2f} of its memory"
        for other in seconds
        if name == "ours" and other[0] == "official"
    ]
    return "; ".join(
        [f"{name}, {precision}: {seconds[mine]:.2f} s, {peaks[mine] / 1e9:.2f} GB at the peak", *ratios]
    )


MEASUREMENTS = {"llamagen": llamagen, "official": official}
