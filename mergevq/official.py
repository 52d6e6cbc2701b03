"""Import of checkpoints of the official release. The only file that knows the release's key names and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml as yaml_reader
from torch import Tensor

from mergevq import serialization
from mergevq.config import merged, parse, to_tree
from mergevq.errors import InputError
from mergevq.presets import preset as named_preset
from mergevq.text_files import read_text
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.weights_file import misfit, read_tensors, state_in, unusable

MODEL_GROUPS = ("encoder", "decoder")
SKIPPED_GROUPS = {
    "dist_model": "teacher",
    "loss": "discriminator and LPIPS",
    "quantize": "quantizer tables (computed)",
    "recovery": "the release's source recovery, which its training never touches",
}
AVERAGED = "model_ema."
STAGE = r"(\d+)"


@dataclass(frozen=True)
class ImportReport:
    """The imported and the skipped tensors of an official checkpoint."""

    out: Path
    tensors: int
    averaged: bool  # whether the EMA weights were taken
    skipped: dict[str, int]  # what was left in the checkpoint: description -> tensors
    absent: tuple[str, ...]  # parts of our tokenizer that the release does not have

    def __str__(self) -> str:
        lines = [f"{self.tensors} tensors ({'EMA' if self.averaged else 'raw'} weights) -> {self.out}"]
        lines += [f"skipped: {name}, {count} tensors" for name, count in self.skipped.items()]
        lines += [f"absent from the release: {name}" for name in self.absent]
        return "\n".join(lines)


def import_official(
    checkpoint: str | Path,
    out: str | Path,
    *,
    yaml: str | Path | None = None,
    preset: str | None = None,
    use_ema: bool = True,
) -> ImportReport:
    """Write the tokenizer of an official checkpoint to the directory `out`, to be read by `mergevq.load`.

    `checkpoint`: a full Lightning checkpoint, a bare state dict, or safetensors. The
    architecture comes from `yaml`, the release's own configuration file, or from one of our presets. With `use_ema`,
    averaged weights are taken where the checkpoint has them. Raises `InputError` for files that cannot be read and
    for any missing or unknown key.
    """
    state = read_state(checkpoint)
    config = config_of(yaml) if yaml is not None else _from_preset(preset)
    averaged = use_ema and any(key.startswith(AVERAGED) for key in state)
    model, skipped = chosen_weights(state, averaged=averaged)
    renamed = translated(model, num_stages=len(config.decoder.multipliers))

    tokenizer = MergeVQ(config)
    if problem := misfit(tokenizer.state_dict(), renamed):
        raise InputError(
            f"{checkpoint} {problem}: give the --config YAML that the checkpoint was trained with"
        )
    if problem := unusable(tokenizer.state_dict(), renamed):
        raise InputError(f"{checkpoint} {problem}: give the checkpoint as it was trained")
    tokenizer.load_state_dict(renamed)
    serialization.save(tokenizer, out)
    absent = ("recovery (Source Recovery was never trained: images need their true source)",)
    return ImportReport(Path(out), len(renamed), averaged, skipped, absent)


def config_of(path: str | Path) -> TokenizerConfig:
    """The tokenizer that a configuration file of the release describes. Raises `InputError` if it is no such file."""
    try:
        tree = yaml_reader.safe_load(read_text(path))
        settings = tree["model"]["init_args"]
        encoder = settings["ddconfig"]
    except FileNotFoundError:
        raise InputError(f"no file {path}: give the release's YAML of this checkpoint") from None
    except (yaml_reader.YAMLError, KeyError, TypeError):
        raise InputError(
            f"{path} is not a configuration of the release: it has no model.init_args.ddconfig"
        ) from None
    if encoder.get("num_rep_blocks"):
        raise InputError(
            f"{path}: num_rep_blocks {encoder['num_rep_blocks']} is not supported; the release's files all have 0"
        )
    return parse(TokenizerConfig, _tree(settings, encoder), where=f"{path}: ")


def _tree(settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    multipliers, channels = list(encoder["ch_mult"]), encoder["ch"]
    resolution, depth = encoder.get("resolution", 256), encoder.get("num_att_blocks", 12)
    grid = resolution // 2 ** (len(multipliers) - 1)
    isotropic = int(encoder.get("isotropic") or 0)
    decoder_width = channels * multipliers[-1]
    width = isotropic if isotropic > 1 else decoder_width
    blocks = {"depth": depth}
    if isotropic:
        kind: dict[str, Any] = {"kind": "vit", "patch": resolution // grid, "positions": "none"}
    else:
        kind = {"kind": "hybrid", "channels": channels, "multipliers": multipliers, "positions": "none"}
        kind["res_blocks"] = encoder.get("num_res_blocks", 2)
    head = encoder.get("dist_head")
    return {
        "image_size": resolution,
        "keep": grid**2 - (encoder.get("merge_num") or 0),
        "encoder": kind | blocks | {"width": width, "heads": _heads(encoder, width)},
        "decoder": {
            "channels": channels,
            "multipliers": multipliers,
            "res_blocks": encoder.get("num_res_blocks", 2),
            "width": decoder_width,
            "depth": depth,
            "heads": _heads(encoder, decoder_width),
        },
        "quantizer": {"kind": "lfq", "bits": settings.get("embed_dim", encoder.get("z_channels", 18))},
        "recovery": None,
        "head": {"layers": 3 if head == "layer3" else 2, "out": encoder.get("num_classes") or width}
        if head
        else None,
    }


def _heads(encoder: Mapping[str, Any], width: int) -> int:
    heads, head_dim = encoder.get("num_heads", 8), encoder.get("head_dim")
    return heads if head_dim is None else max(width // head_dim, heads)


def _from_preset(name: str | None) -> TokenizerConfig:
    if name is None:
        raise InputError(
            "say what the checkpoint is: --config with the release's YAML, or --preset with one of our names"
        )
    # The release's encoders have no positions, and its recovery is untrained.
    return parse(
        TokenizerConfig,
        merged(to_tree(named_preset(name)), {"encoder": {"positions": "none"}, "recovery": None}),
    )


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, by names without wrappers. Raises `InputError`."""
    if not Path(path).exists():
        raise InputError(f"no file {path}: give a checkpoint of the official release")
    return state_in(read_tensors(path, named=str(path)), named=str(path))


def chosen_weights(
    state: Mapping[str, Tensor], *, averaged: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(tensors of encoder and decoder by the release's names, what is skipped). Raises `InputError` for other groups."""
    # The release's averages are named like the parameters with the dots taken out.
    dotless = {key.replace(".", ""): key for key in state if not key.startswith(AVERAGED)}
    averages = {key.removeprefix(AVERAGED): value for key, value in state.items() if key.startswith(AVERAGED)}
    counters = {"decay", "num_updates"}
    model: dict[str, Tensor] = {}
    skipped: dict[str, int] = {}
    unknown = [f"{AVERAGED}{key}" for key in averages if key not in dotless and key not in counters]
    for key, value in state.items():
        group = key.split(".")[0]
        if key.startswith(AVERAGED):
            continue
        if group in MODEL_GROUPS:
            model[key] = averages.get(key.replace(".", ""), value) if averaged else value
        elif group in SKIPPED_GROUPS:
            skipped[SKIPPED_GROUPS[group]] = skipped.get(SKIPPED_GROUPS[group], 0) + 1
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"the checkpoint has unknown keys {', '.join(sorted(unknown)[:4])} ({len(unknown)} in all)"
        )
    if averages and not averaged:
        skipped["averaged (EMA) weights"] = len(averages)
    return model, skipped


BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "ls1": "scale1",
    "ls2": "scale2",
    "mlp.dwconv": "mlp.conv",
}


def translated(model: Mapping[str, Tensor], *, num_stages: int) -> dict[str, Tensor]:
    """Tensors under our names. A name that matches no rule is kept, and so found to be unknown."""
    renamed: dict[str, Tensor] = {}
    for key, value in model.items():
        if key == "encoder.conv_out.weight":
            value = value.flatten(1)  # a 1 x 1 convolution is a linear layer
        renamed[_renamed(key, num_stages)] = value
    return renamed


def _renamed(key: str, num_stages: int) -> str:
    def coarsest_first(stage: str) -> int:
        return num_stages - 1 - int(stage)

    rules: list[tuple[str, Any]] = [
        (r"encoder\.conv_in\.0\.", "encoder.stem.conv_in."),
        (r"encoder\.conv_in\.1\.", "encoder.stem.norm."),
        (r"encoder\.conv_in\.", "encoder.stem.conv_in."),
        (rf"encoder\.down\.{STAGE}\.block\.{STAGE}\.", r"encoder.stem.stages.\1.\2."),
        (rf"encoder\.down\.{STAGE}\.downsample\.", r"encoder.stem.downs.\1."),
        (r"encoder\.attn\.cls_token$", "encoder.summary_token"),
        (r"(encoder|decoder)\.attn\.blocks\.", r"\1.blocks."),
        (r"encoder\.norm_out\.", "to_latents.norm."),
        (r"encoder\.conv_out\.", "to_latents.project."),
        (r"encoder\.dist_head\.", "head.layers."),
        (r"decoder\.attn\.pos_embed\.", "decoder.positions."),
        (rf"decoder\.adaptive\.{STAGE}\.", lambda m: f"decoder.norms.{coarsest_first(m[1])}."),
        (
            rf"decoder\.up\.{STAGE}\.block\.{STAGE}\.",
            lambda m: f"decoder.stages.{coarsest_first(m[1])}.{m[2]}.",
        ),
        (rf"decoder\.up\.{STAGE}\.upsample\.conv1\.", lambda m: f"decoder.ups.{coarsest_first(m[1])}.conv."),
    ]
    for pattern, replacement in rules:
        found = re.match(pattern, key)
        if found:
            key = re.sub(pattern, replacement, key, count=1)
            break
    key = key.replace("nin_shortcut", "skip")
    if ".blocks." in key:
        for theirs, ours in BLOCK.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return key
