"""What is trusted and what is not: servers, tokens, credentials, pickles, archives, images, recipes."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform import recipe
from mergevq_platform.data.images.decoding import MAX_PIXELS, ImageDecodeError, decode
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.failures import one_line
from mergevq_platform.evaluation.compare import entries_of
from mergevq_platform.storage.credentials import holds_credentials, without_credentials
from mergevq_platform.storage.runs import Run, tags
from mergevq_platform.sweeps import driver

ROOT = Path(__file__).parents[3]
SECRET = "hunter2"
WITH_SECRET = [
    f"s3://AKIA:{SECRET}@bucket/runs?endpoint_override=http%3A%2F%2F127.0.0.1",
    f"s3://bucket/runs?region=eu&secret_key={SECRET}",
    f"https://user:{SECRET}@mlflow.example/path",
    f"postgresql+psycopg2://mlflow:{SECRET}@db:5432/mlflow",
    f"git+https://{SECRET}@github.com/me/private",
    f"abfss://box@account/x?sig={SECRET}&v=1",
]


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_credentials_are_found_and_taken_out_of_a_uri(uri: str) -> None:
    assert holds_credentials(uri)
    cleaned = without_credentials(f"cannot open '{uri}' (no such host)")
    assert SECRET not in cleaned
    assert not holds_credentials(cleaned)
    assert cleaned.endswith("' (no such host)")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs?region=eu&endpoint_override=http%3A%2F%2Fhost:9000",
        "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART",
        "git@github.com:a/b",
        "sqlite:////home/me/mlflow.db",
        "a question? tokens=3 & more",
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(uri: str) -> None:
    assert not holds_credentials(uri)
    assert without_credentials(uri) == uri


@given(st.text(st.characters(blacklist_characters="/?#'\"", blacklist_categories=("Z", "C")), min_size=1))
def test_no_password_survives_cleaning(password: str) -> None:
    marked = f"MARK{password}MARK"
    assert marked not in without_credentials(f"see s3://key:{marked}@bucket/x, then go on")


def test_a_recipe_with_credentials_is_refused_without_repeating_them(small_recipe: dict[str, Any]) -> None:
    small_recipe["data"]["path"] = f"s3://key:{SECRET}@bucket/images"
    with pytest.raises(InputError, match=r"data\.path: 's3://bucket/images' was given with") as refusal:
        recipe.resolve(small_recipe)
    assert SECRET not in str(refusal.value)


def test_a_runs_tags_and_messages_carry_no_credentials(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    resolved = recipe.resolve(small_recipe)
    run = Run("r", tmp_path, f"s3://key:{SECRET}@bucket/runs")
    assert SECRET not in json.dumps(tags(resolved, run))
    assert tags(resolved, run)["mergevq.checkpoints"] == "s3://bucket/runs/r"
    assert SECRET not in one_line(InputError(f"no run in {run.storage}"))
    assert SECRET not in one_line(RuntimeError(f"failed at {run.storage}"))


def test_a_sweep_stores_no_credentials(tmp_path: Path) -> None:
    for places in ({"storage": WITH_SECRET[0]}, {"tracking_uri": WITH_SECRET[2]}):
        with pytest.raises(InputError, match="was given with credentials") as refusal:
            driver.sweep(None, home=tmp_path, resume="any", **places)
        assert SECRET not in str(refusal.value)


@pytest.mark.ray
def test_the_clusters_token_is_the_users_alone_and_nobody_joins_without_it(ray_home: Path) -> None:
    import ray

    token = ray_home / "ray_token"
    if not token.exists():
        pytest.skip("the caller chose another token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    address = ray.get_runtime_context().gcs_address
    script = (
        "import ray\n"
        "try: print(ray._raylet.GcsClient(address={!r}).get_all_node_info())\n"
        "except BaseException as error: print('REFUSED', type(error).__name__, error)\n"
    )
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
    }
    answer = subprocess.run(
        [sys.executable, "-c", script.format(address)],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "REFUSED" in answer.stdout or answer.returncode != 0, answer.stdout
    assert "node_manager_address" not in answer.stdout


def test_a_token_is_made_once_and_readable_by_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0)
    try:
        cluster._use_token(tmp_path)
    finally:
        os.umask(before)
    path = tmp_path / "ray_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # without one, Ray would write its own into the user's home
    path.chmod(0o644)
    cluster._use_token(tmp_path)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    assert path.read_text() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


CODE = sorted(p for room in ("mergevq", "platform", "jobs", "sweeps") for p in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_can_run_code(path: Path) -> None:
    for name, call in calls(path):
        if name == "torch.load":
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert keywords.get("weights_only") == "True", ast.unparse(call)
        if name in ("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads"):
            # The one exception: a sweep's definition, which the user's own home holds.
            assert path.name == "stored.py", ast.unparse(call)
            assert "directory" in ast.unparse(call)
        assert name not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        assert not name.endswith((".extractall", ".unpack_archive")), ast.unparse(call)
        assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in call.keywords)


def test_the_search_for_dangerous_calls_finds_them(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\ntorch.load('x')\n")
    with pytest.raises(AssertionError):
        test_nothing_from_outside_can_run_code(bad)


class Trap:
    """What a hostile pickle holds: reading it would make a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def test_a_sweep_is_found_by_name_only_so_that_no_foreign_pickle_is_read(tmp_path: Path) -> None:
    foreign, home, witness = tmp_path / "download", tmp_path / "home", tmp_path / "witness"
    foreign.mkdir()
    (home / "ray").mkdir(parents=True)
    (foreign / "place.json").write_text("{}")
    (foreign / "sweep.pkl").write_bytes(pickle.dumps(Trap(witness)))
    (home / "ray" / "x-0").mkdir()
    for name in (str(foreign), "../../download"):
        with pytest.raises(InputError):
            driver.sweep(None, home=home, resume=name)
        with pytest.raises(InputError):
            entries_of(name, home=home)
    assert not witness.exists()


def test_a_runs_files_from_storage_bring_no_pickle(tmp_path: Path) -> None:
    there = tmp_path / "storage" / "run"
    there.mkdir(parents=True)
    for name in ("recipe.yaml", "journal.jsonl", "sweep.pkl"):
        (there / name).write_text("")
    run = Run("run", tmp_path / "home", str(tmp_path / "storage"))
    run.fetch()
    assert sorted(p.name for p in run.directory.iterdir()) == ["journal.jsonl", "recipe.yaml"]


def test_a_recipe_cannot_name_code(tmp_path: Path, small_recipe: dict[str, Any]) -> None:
    witness = tmp_path / "witness"
    tagged = tmp_path / "tagged.yaml"
    tagged.write_text(f"name: !!python/object/apply:os.mkdir [{witness}]\n")
    with pytest.raises(InputError, match="is not YAML"):
        recipe.load(tagged)
    for override in (
        f"task.model.target=os.mkdir({witness})",
        "task.losses.alignment.kind=os.system",
        "task.model.encoder._target_=os.system",
        "evaluation.extractor.kind=__import__",
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(small_recipe))
        with pytest.raises(InputError):
            recipe.load(path, [override])
    assert not witness.exists()


def test_a_image_that_would_unpack_into_gigabytes_is_refused_unread() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 60_000
    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    before = psutil.Process().memory_info().rss
    with pytest.raises(ImageDecodeError, match="more"):
        decode(io.BytesIO(bomb).getvalue())
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
