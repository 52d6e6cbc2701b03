"""Against outputs of the official release on random weights: the same groups, codes, latents, images and heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergevq
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq.merge_schedule import merge_schedule
from mergevq.merging import unmerge
from mergevq.official import import_official
from mergevq_platform.data import write_shapes
from mergevq_platform.recipe import load, resolve
from mergevq_platform.tasks.task import task_of

REFERENCE = Path(__file__).parent / "reference"
WEIGHTS, YAML = REFERENCE / "gr_tiny.weights.safetensors", REFERENCE / "gr_tiny.yaml"
ABOUT = json.loads((REFERENCE / "gr_tiny.json").read_text())
KEEPS = ABOUT["keeps"]


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(REFERENCE / "gr_tiny.io.safetensors")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> mergevq.MergeVQ:
    out = tmp_path_factory.mktemp("imported")
    report = import_official(WEIGHTS, out, yaml=YAML)
    assert "recovery" in str(report)
    return mergevq.load(out)


@pytest.mark.parametrize("keep", KEEPS)
def test_the_schedule_is_the_releases(keep: int) -> None:
    assert merge_schedule(ABOUT["grid_tokens"], keep, 4) == tuple(ABOUT["r"][str(keep)])


@pytest.mark.parametrize("keep", KEEPS)
@torch.inference_mode()
def test_encoding_and_decoding_equal_the_releases(
    keep: int, tokenizer: mergevq.MergeVQ, expected: dict[str, Tensor]
) -> None:
    encoded = tokenizer.encode(expected["image"], keep)
    theirs, ours = expected[f"k{keep}.assignment"].long(), encoded.source.assignment
    # Slot order is arbitrary, so groupings are compared: which cells are together.
    assert torch.equal(ours[:, :, None] == ours[:, None], theirs[:, :, None] == theirs[:, None])
    ours_size = encoded.source.size.gather(1, ours)
    assert torch.equal(ours_size.int(), expected[f"k{keep}.size"].gather(1, theirs))

    latents = unmerge(encoded.latents, ours)
    torch.testing.assert_close(latents, expected[f"k{keep}.latent_grid"], atol=1e-4, rtol=1e-4)
    codes = unmerge(encoded.codes, ours)
    differs = codes.sign() != expected[f"k{keep}.code_grid"]
    assert (expected[f"k{keep}.latent_grid"].abs()[differs] < 1e-5).all()
    indices = encoded.indices.gather(1, ours)
    assert torch.equal(indices, expected[f"k{keep}.index_kept"].gather(1, theirs).long())

    torch.testing.assert_close(
        tokenizer.decode(encoded), expected[f"k{keep}.reconstruction"], atol=1e-4, rtol=0
    )
    decoded = tokenizer.decode_indices(encoded.indices, encoded.source)
    torch.testing.assert_close(decoded, expected[f"k{keep}.reconstruction"], atol=1e-4, rtol=0)
    _, head = tokenizer.encode_summary(expected["image"], keep)
    torch.testing.assert_close(head, expected[f"k{keep}.head"], atol=1e-4, rtol=1e-4)


def test_an_imported_model_without_recovery_says_so(tokenizer: mergevq.MergeVQ) -> None:
    with pytest.raises(InputError, match="no Source Recovery"):
        tokenizer.decode_indices(torch.zeros(1, 144, dtype=torch.int64))


def lightning_checkpoint(
    path: Path, *, average: float | None = 0.5, extra: dict[str, Tensor] | None = None
) -> Path:
    """A full training checkpoint in the release's layout; the averages are the weights times `average`."""
    state = dict(load_file(WEIGHTS))
    if average is not None:
        state |= {
            f"model_ema.{key.replace('.', '')}": value * average for key, value in load_file(WEIGHTS).items()
        }
        state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(3)}
        state["model_ema.lossdiscriminatormain0weight"] = torch.zeros(1)
    state["loss.discriminator.main.0.weight"] = torch.zeros(1)
    state["loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1)
    state["dist_model.embeddings.cls_token"] = torch.zeros(1)
    state["quantize.mask"] = torch.zeros(10)
    torch.save({"state_dict": state | (extra or {}), "epoch": 3}, path)
    return path


def test_averaged_weights_are_taken_from_a_full_checkpoint(tmp_path: Path) -> None:
    checkpoint = lightning_checkpoint(tmp_path / "full.ckpt")
    report = import_official(checkpoint, tmp_path / "ema", yaml=YAML)
    assert report.averaged
    assert report.skipped == {"discriminator and LPIPS": 2, "teacher": 1, "quantizer tables (computed)": 1}
    import_official(checkpoint, tmp_path / "raw", yaml=YAML, use_ema=False)
    ema, raw = mergevq.load(tmp_path / "ema").state_dict(), mergevq.load(tmp_path / "raw").state_dict()
    assert all(torch.equal(ema[name], raw[name] * 0.5) for name in raw)


def test_a_bare_state_dict_is_read(tmp_path: Path, tokenizer: mergevq.MergeVQ) -> None:
    torch.save(load_file(WEIGHTS), tmp_path / "bare.pt")
    assert not import_official(tmp_path / "bare.pt", tmp_path / "out", yaml=YAML).averaged
    ours = mergevq.load(tmp_path / "out").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in tokenizer.state_dict().items())


def test_unknown_and_missing_keys_are_errors(tmp_path: Path) -> None:
    strange = lightning_checkpoint(tmp_path / "strange.ckpt", extra={"adapter.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"unknown keys adapter\.weight \(1 in all\)"):
        import_official(strange, tmp_path / "out", yaml=YAML)
    state = load_file(WEIGHTS)
    del state["decoder.conv_in.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"lacks decoder\.conv_in\.bias \(1 in all\): give the --config"):
        import_official(tmp_path / "less.safetensors", tmp_path / "out", yaml=YAML)
    save_file(load_file(WEIGHTS) | {"encoder.extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(InputError, match=r"has unknown encoder\.extra"):
        import_official(tmp_path / "more.safetensors", tmp_path / "out", yaml=YAML)
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        import_official(tmp_path / "evil.ckpt", tmp_path / "out", yaml=YAML)
    assert not (tmp_path / "ran").exists()


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nothing\.ckpt"):
        import_official(tmp_path / "nothing.ckpt", tmp_path / "out", yaml=YAML)
    with pytest.raises(InputError, match=r"--config .* or --preset"):
        import_official(WEIGHTS, tmp_path / "out")
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match=r"other\.yaml is not a configuration of the release"):
        import_official(WEIGHTS, tmp_path / "out", yaml=tmp_path / "other.yaml")
    with pytest.raises(InputError, match=r"has other shapes|lacks"):
        import_official(WEIGHTS, tmp_path / "out", preset="gr_256_d32")


def test_training_starts_from_an_imported_checkpoint(tokenizer: mergevq.MergeVQ, tmp_path: Path) -> None:
    import_official(WEIGHTS, tmp_path / "imported", yaml=YAML)
    write_shapes(tmp_path / "images", images=8, val_images=8, size=64, seed=0)
    names = [f"task.initial_run={tmp_path / 'imported'}", f"data.path={tmp_path / 'images'}"]
    recipe = resolve(
        load(
            "finetune_tokenizer",
            [*names, "global_batch=2", "task.losses.adversarial.discriminator.channels=8"],
        )
    )
    assert recipe.tokenizer.kept_counts() == (tokenizer.config.keep,)
    assert recipe.tokenizer.model == tokenizer.config
    assert recipe.data.views.image_size == 64
    assert recipe.tokenizer.losses.recovery.weight == 0, "the release has no Source Recovery"
    task = task_of(recipe)
    training = task.build(recipe, task.open_data(recipe))
    ema = Ema(training.model(), recipe.ema_decay)
    remarks = task.begin(training, ema.averaged)
    for model in (training.model(), ema.averaged):
        assert all(
            torch.equal(value, model.state_dict()[name]) for name, value in tokenizer.state_dict().items()
        )
    said = "; ".join(remarks or ())
    assert "holds weights alone" in said
    assert "no discriminator: that of this training starts untrained" in said
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(training.model().eval()(images).reconstruction, tokenizer(images).reconstruction)
