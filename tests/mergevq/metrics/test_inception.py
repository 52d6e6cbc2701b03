"""The Inception's names, files and pre-processing; what it measures is compared in tests/parity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.metrics import (
    Extractor,
    InceptionExtractor,
    InceptionFeaturesConfig,
    distance_name,
    extractor,
    score_name,
)
from mergevq.metrics import extractors as extractors_module
from mergevq.metrics.inception import STANDARD_SHA256, Inception, resized


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(Inception().state_dict(), path)
    return path


def test_only_the_standard_file_earns_the_name(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = extractor(InceptionFeaturesConfig(weights=str(weights)))
    digest = network.identity["weights_sha256"]
    assert network.name == f"inception_{digest[:8]}"
    assert not network.standard
    assert "not FID" in network.identity["description"]
    assert distance_name(network, "reconstruction") == f"rfd_inception_{digest[:8]}"
    assert distance_name(network, "generation", "sfd") == f"gsfd_inception_{digest[:8]}"
    assert score_name(network, "inception_score") == f"inception_score_inception_{digest[:8]}"
    assert STANDARD_SHA256.startswith("6726825d")  # as the file's published name says
    monkeypatch.setattr(extractors_module, "STANDARD_SHA256", digest)
    standard = extractor(InceptionFeaturesConfig(weights=str(weights), sha256=digest))
    assert standard.standard
    names = [distance_name(standard, "reconstruction"), distance_name(standard, "generation")]
    names += [distance_name(standard, "generation", "sfd"), distance_name(standard, "generation", "fd_inf")]
    assert names == ["rfid", "gfid", "gsfid", "gfid_inf"]
    assert score_name(standard, "precision") == "precision"


def test_one_pass_gives_all_features_and_the_extractor_the_pooled(weights: Path) -> None:
    network = extractor(InceptionFeaturesConfig(weights=str(weights)))
    assert isinstance(network, InceptionExtractor)
    assert not network.train().network.training
    assert not any(p.requires_grad for p in network.parameters())
    images = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network.outputs(images)
    assert [tuple(x.shape) for x in outputs] == [(1, 2048), (1, 17 * 17 * 7), (1, 1008)]
    assert {x.dtype for x in outputs} == {torch.float32}
    torch.testing.assert_close(network(images), outputs.pool, rtol=1e-5, atol=1e-6)
    assert outputs.spatial.min() >= 0  # after its ReLU


def test_what_is_no_inception_is_refused(weights: Path, tmp_path: Path) -> None:
    def refuse(state: object, match: str) -> None:
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(InputError, match=match):
            extractor(InceptionFeaturesConfig(weights=str(tmp_path / "bad.pth")))

    state = torch.load(weights, weights_only=True)
    refuse({k: v for k, v in state.items() if k != "fc.weight"}, "extractor.weights: .* lacks fc.weight")
    refuse(state | {"AuxLogits.fc.bias": torch.zeros(2)}, "has unknown AuxLogits.fc.bias")
    # torchvision's own classifier of 1000 classes is another network by the same names.
    refuse(state | {"fc.weight": torch.zeros(1000, 2048)}, "other shapes for fc.weight")
    refuse([1, 2], "does not hold a state dict")
    with pytest.raises(InputError, match="SHA-256"):
        extractor(InceptionFeaturesConfig(weights=str(weights), sha256="0" * 64))
    with pytest.raises(InputError, match="no weights file"):
        extractor(InceptionFeaturesConfig(weights="nowhere.pth"))
    with pytest.raises(InputError, match="resize"):
        parse(InceptionFeaturesConfig, {"weights": "x", "resize": "nearest"})
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(InputError, match=r"TorchScript program.*pt_inception-2015-12-05-6726825d\.pth"):
        extractor(InceptionFeaturesConfig(weights=str(tmp_path / "inception-2015-12-05.pt")))


def test_counters_that_converted_files_leave_out_are_not_missed(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "converted.pth")
    network: Extractor = extractor(InceptionFeaturesConfig(weights=str(tmp_path / "converted.pth")))
    found = network.state_dict()
    assert all(torch.equal(found[f"network.{name}"], value) for name, value in state.items())


def test_identities_tell_the_resizing_apart(weights: Path) -> None:
    found = [
        extractor(parse(InceptionFeaturesConfig, {"weights": str(weights), "resize": how})).identity["resize"]
        for how in ("torch_fidelity", "pytorch_fid", "clean")
    ]
    assert len(set(found)) == 3
    settings = InceptionFeaturesConfig(weights=str(weights), resize="clean")
    assert parse(InceptionFeaturesConfig, to_tree(settings)) == settings


@pytest.mark.parametrize("size", [(32, 48), (400, 330)])
def test_clean_resizing_is_pillows_in_float(size: tuple[int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8))
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32), mode="F").resize((299, 299), Image.BICUBIC))
        for channel in images[0].numpy()
    ]
    expected = (np.stack(channels).clip(0, 255) - 128) / 128
    torch.testing.assert_close(resized(images, "clean")[0], torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_pytorch_fids_resizing_is_pytorchs_bilinear_on_zero_to_one() -> None:
    images = torch.randint(0, 256, (1, 3, 20, 33), dtype=torch.uint8)
    expected = torch.nn.functional.interpolate(images / 255, (299, 299), mode="bilinear") * 2 - 1
    torch.testing.assert_close(resized(images, "pytorch_fid"), expected)
    same = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    for how, scale in (("torch_fidelity", 128.0), ("clean", 128.0), ("pytorch_fid", 127.5)):
        torch.testing.assert_close(resized(same, how), (same.float() - scale) / scale, rtol=0, atol=1e-5)  # type: ignore[arg-type]
