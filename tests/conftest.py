"""What the whole suite shares: one small image set, one Ray cluster, no network, no leftovers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one is no failure of ours
settings.load_profile("any machine")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "MERGEVQ_HOME", "MERGEVQ_STORAGE"):
    os.environ.pop(name, None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever uses the session's cluster is marked so: `make test` runs it in a process of its own."""
    if "ray_home" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.ray)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever empty database this process needs is a copy of its first."""
    import migrated_databases

    migrated_databases.copy_from_now_on()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes by one thread, as a trial and golden trainings do, so that sums are in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 + 64 procedural shapes of 16 px."""
    from mergevq_platform.data import write_shapes

    directory = tmp_path_factory.mktemp("images")
    write_shapes(directory, images=192, val_images=64, size=16, seed=0)
    return directory


@pytest.fixture
def small_recipe(image_set: Path) -> dict[str, Any]:
    """The tree of a recipe that trains in seconds: every part of the tokenizer, as small as it goes."""
    return {
        "name": "small",
        "task": {
            "preset": "test_gr",
            "keep": {"kind": "list", "counts": [4, 9, 16]},
            "losses": {
                "adversarial": {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 1}},
                "alignment": {"kind": "self", "prototypes": 16},
            },
        },
        "data": {"path": str(image_set), "views": {"image_size": 16, "student_scale": [0.5, 1.0]}},
        "steps": 8,
        "global_batch": 8,
        "micro_batch": 4,
        "log_every": 1,
        "checkpoint_every": 4,
        "optimizer": {"learning_rate": 1e-3, "schedule": {"kind": "constant"}},
        "evaluation": {"keeps": [4, 9, 16], "batch": 16, "validation_images": 32, "shown_images": 2},
        "cluster": {"device": "cpu"},
    }


@pytest.fixture(scope="session")
def hub_server_of_the_session() -> Iterator[Any]:
    """A Hugging Face Hub on this machine, see `hub_server`."""
    import hub_server

    with hub_server.serving() as hub:
        yield hub


@pytest.fixture
def hub(hub_server_of_the_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Hub that `huggingface_hub` of this process speaks to: empty, as its cache is, and without a token."""
    import hub_server

    hub_server_of_the_session.clear()
    hub_server.use(hub_server_of_the_session.url, tmp_path / "hub-cache", monkeypatch)
    return hub_server_of_the_session


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer alone, untrained: 16 cells of 6 bits."""
    import torch

    import mergevq

    directory = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    mergevq.save(mergevq.create("test_gr"), directory)
    return directory


@pytest.fixture(scope="session")
def codes(image_set: Path, tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as codes at 4, 9 and 16 kept tokens, two views of each training image."""
    from mergevq_platform.codes import tokenize
    from mergevq_platform.storage.tokenizer_ref import find_tokenizer

    directory = tmp_path_factory.mktemp("codes") / "set"
    tokenizer = find_tokenizer(str(tokenizer_directory))
    tokenize(tokenizer, directory, data=str(image_set), keep=(4, 9, 16), crops=2, progress=False)
    return directory


@pytest.fixture(scope="session")
def allocated_counts(image_set: Path, tokenizer_directory: Path) -> Any:
    """A kept count of 4, 9 or 16 for every image, 10 on the mean, by the bytes of its JPEG."""
    from mergevq.allocation import Calibration, CompressedSizeAllocatorConfig, build_allocator, calibrations
    from mergevq_platform.allocation.allocator_ref import AllocatorRef
    from mergevq_platform.allocation.calibrating import CalibratedAllocator
    from mergevq_platform.codes import AllocatedCounts
    from mergevq_platform.data import EvalBatches, open_dataset, to_unit_range
    from mergevq_platform.storage.tokenizer_ref import find_tokenizer

    config, menu, dataset = CompressedSizeAllocatorConfig(), (4, 9, 16), open_dataset(image_set, "train")
    tokenizer = find_tokenizer(str(tokenizer_directory))
    images = to_unit_range(EvalBatches(dataset, 16, 192).batch(0), "cpu")["image"]
    allocator = build_allocator(config, menu)
    calibration = Calibration(
        allocator=config,
        allocator_sha256=None,
        menu=menu,
        tokenizer_sha256=tokenizer.sha256,
        data_fingerprint=dataset.fingerprint,
        split="train",
        images=192,
        budgets=calibrations(allocator.scores(tokenizer.load(), images), allocator, [10.0]),
    )
    ref = AllocatorRef("compressed_size", config, menu)
    return AllocatedCounts(CalibratedAllocator(ref, calibration), 10.0)


@pytest.fixture(scope="session")
def ragged_codes(
    image_set: Path,
    tokenizer_directory: Path,
    allocated_counts: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The images as codes, each at its own kept count, two views of each training image."""
    from mergevq_platform.codes import tokenize
    from mergevq_platform.storage.tokenizer_ref import find_tokenizer

    directory = tmp_path_factory.mktemp("ragged-codes") / "set"
    tokenizer = find_tokenizer(str(tokenizer_directory))
    tokenize(tokenizer, directory, data=str(image_set), keep=allocated_counts, crops=2, progress=False)
    return directory


@pytest.fixture
def small_generator(image_set: Path, codes: Path) -> dict[str, Any]:
    """The tree of a recipe that trains a tiny MergeAR on the codes in seconds."""
    return {
        "name": "small-generator",
        "task": {
            "kind": "generator",
            "preset": "test_mergear",
            "model": {"classes": 12},
            "codes": str(codes),
            "generation": {"images": 48, "batch": 12, "scales": [1.0, 2.0]},
        },
        "data": {"path": str(image_set), "views": {"image_size": 16}},
        "steps": 8,
        "global_batch": 8,
        "micro_batch": 4,
        "log_every": 1,
        "checkpoint_every": 4,
        "optimizer": {"learning_rate": 1e-3, "schedule": {"kind": "constant"}},
        "evaluation": {"batch": 16, "validation_images": 32, "shown_images": 2},
        "cluster": {"device": "cpu"},
    }


@pytest.fixture(scope="session")
def ray_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose Ray cluster (two CPUs, workers forked) is started once and shut down at the end."""
    import ray

    import forked_workers
    from mergevq_platform.distributed import cluster

    home = tmp_path_factory.mktemp("home")
    with forked_workers.starter(tmp_path_factory.mktemp("workers")) as executable:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(executable))
            patch.setenv("RAY_prestart_worker_first_driver", "0")  # they are of no job: a template for two
            cluster.connect(home)
        yield home
        ray.shutdown()


@pytest.fixture
def joining(ray_home: Path) -> dict[str, str]:
    """The environment of a driver in a process of its own that joins the session's cluster."""
    import ray

    # The path of the token is in the environment already: `connect` put it there.
    return os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
