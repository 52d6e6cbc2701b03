"""What is uploaded, refused and asked before a cluster is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import yaml
from packaging.requirements import Requirement

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.operations.submission import ClusterClient, Verb, packages, staging
from mergevq_platform.operations.submission.client import tokens
from mergevq_platform.operations.submission.packages import ClusterInfo, compare
from mergevq_platform.operations.submission.submit import environment, job_name
from mergevq_platform.operations.submission.verb import read_verb as read_parsed_verb
from mergevq_platform.tracking.proxies import spare_loopback

ROOT = Path(__file__).parents[3]


def read_verb(words: list[str]) -> Verb:
    return read_parsed_verb(words, cli.parse)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe: dict[str, Any]) -> Path:
    """A working directory with a recipe, images and runs."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("MERGEVQ_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (folder / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    (folder / "runs").mkdir()
    (folder / "runs" / "big.bin").write_bytes(b"x" * 100_000)
    (folder / "secret.env").write_text("PASSWORD=hunter2")
    return folder


def test_the_upload_is_our_two_packages_and_what_the_words_name(here: Path, tmp_path: Path) -> None:
    staged = staging.stage(["train", "small.yaml", "steps=3"], tmp_path / "out")
    assert staged.words == ["train", "small.yaml", "steps=3"]
    tops = {name.split("/")[0] for name in staged.files}
    assert tops == {"mergevq", "mergevq_platform", "small.yaml"}
    assert "mergevq_platform/recipes/demo.yaml" in staged.files
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in staged.files)
    on_disk = {p.relative_to(staged.directory).as_posix() for p in staged.directory.rglob("*") if p.is_file()}
    assert on_disk == set(staged.files)
    assert staged.bytes < 3 * 2**20


@pytest.mark.slow
def test_an_installed_package_stages_the_same_tree_as_a_checkout(here: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(ROOT / "mergevq", installed / "mergevq")
    shutil.copytree(ROOT / "platform" / "mergevq_platform", installed / "mergevq_platform")
    shutil.copytree(ROOT / "jobs" / "recipes", installed / "mergevq_platform" / "recipes")
    script = (
        "from pathlib import Path; from mergevq_platform.operations.submission import staging\n"
        f"print(*sorted(staging.stage(['recipes'], Path({str(tmp_path / 'other')!r})).files), sep='\\n')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=here,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == sorted(staging.stage(["recipes"], tmp_path / "out").files)


def test_files_from_elsewhere_are_renamed_and_cluster_paths_stay(here: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "small.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("x")
    (here / "w.pt").write_text("weights")
    words = [
        "train",
        str(elsewhere),
        f"task.initial_weights={elsewhere}",
        "task.initial_weights=w.pt",
        f"--recipe={here / 'small.yaml'}",
    ]
    staged = staging.stage(words, tmp_path / "out", packages=False)
    assert staged.words == [
        "train",
        "given/small.yaml",
        f"task.initial_weights={elsewhere}",
        "task.initial_weights=w.pt",
        "--recipe=small.yaml",
    ]
    assert set(staged.files) == {"given/small.yaml", "w.pt", "small.yaml"}


def test_what_an_override_names_is_known_from_its_type_and_not_from_what_lies_here(
    here: Path, tmp_path: Path
) -> None:
    for name in ("mine", "w.pt"):
        (here / name).write_text("x")
    (here / "folder").mkdir()
    words = ["train", "name=mine", "experiment=folder", "task.loss_preset=w.pt"]
    staged = staging.stage(words, tmp_path / "out", packages=False)
    assert (staged.words, staged.files) == (words, {})
    assert staging.stage(
        ["train", "task.losses.perceptual.backbone=w.pt"], tmp_path / "out", packages=False
    ).files == {"w.pt": 1}


def test_folders_of_this_machine_are_refused_but_names_are_not(here: Path, tmp_path: Path) -> None:
    (here / "runs" / "data").mkdir()
    for word in ("runs/data", "data.path=runs", "--out=runs"):
        with pytest.raises(InputError, match="is a folder of this machine"):
            staging.stage(["train", word], tmp_path / "out", packages=False)
    assert staging.stage(["evaluate", "runs"], tmp_path / "out", packages=False).words == ["evaluate", "runs"]


def test_a_large_upload_is_refused_with_its_largest_paths_before_anything_is_copied(
    here: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"98\.\d KiB, more than 50\.0 KiB; largest: runs/big\.bin"
    ) as refusal:
        staging.stage(
            ["evaluate", "runs/big.bin", "small.yaml"],
            tmp_path / "out",
            packages=False,
            limit_bytes=50 * 1024,
        )
    assert "absolute path" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_included_folder_of_a_checkout_leaves_out_what_git_ignores(here: Path, tmp_path: Path) -> None:
    (here / "mine" / "cache").mkdir(parents=True)
    (here / "mine" / "helper.py").write_text("x = 1")
    (here / "mine" / "cache" / "big").write_text("x")
    (here / ".gitignore").write_text("cache/\n")
    subprocess.run(["git", "init", "-q"], cwd=here, check=True)
    staged = staging.stage(["recipes"], tmp_path / "out", packages=False, include=[Path("mine")])
    assert set(staged.files) == {"mine/helper.py"}
    with pytest.raises(InputError, match="below the working directory"):
        staging.stage(["recipes"], tmp_path / "out", packages=False, include=[Path("/etc/passwd")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a verb"),
        (["jobs", "list"], "is not a verb that runs as a job"),
        (["train", "demo"], r"data\.path is 'runs/data/shapes', a relative path"),
        (
            ["train", "small.yaml", "task.losses.alignment={kind: stand_in, directory: runs/teacher}"],
            r"task\.losses\.alignment\.directory is 'runs/teacher', a relative path",
        ),
        (["train", "nothing"], "no recipe 'nothing'"),
        (["train", "small.yaml", "stepss=4"], "unknown key 'stepss'"),
        (["train", "small.yaml", "--storage", "s3://k:hunter2@b/x"], "open to all who see the cluster"),
    ],
)
def test_what_the_verb_would_refuse_is_refused_before_submission(
    here: Path, words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        read_verb(words)
    assert "hunter2" not in str(refusal.value)


def test_a_training_without_a_name_is_named_as_its_job(here: Path) -> None:
    verb = read_verb(["train", "small.yaml", "steps=3"])
    assert (verb.recipe, verb.names_a_run) == ("small", True)
    assert job_name(verb).startswith("small-20")
    assert not read_verb(["train", "small.yaml", "--name", "mine"]).names_a_run
    assert job_name(read_verb(["train", "--resume", "mine"])).startswith("train-mine-20")


def test_small_weights_beside_a_recipe_go_along(here: Path) -> None:
    (here / "dino.safetensors").write_bytes(b"x")
    words = ["train", "small.yaml", "task.initial_weights=dino.safetensors"]
    assert read_verb(words).include == [Path("dino.safetensors")]


def test_an_image_of_another_version_is_said() -> None:
    other = ClusterInfo(**{**vars(HAS_ALL), "versions": {"mergevq": "0.0.1"}, "holds_mergevq": True})
    assert "the image holds mergevq 0.0.1" in packages.of_image(other).warnings[0]


def test_a_sweep_takes_the_recipe_file_that_it_names_along(here: Path) -> None:
    (here / "question.py").write_text(
        "from mergevq_platform.sweeps import *\n"
        "SWEEP = Sweep(name='q', question='?', recipe='small.yaml', search=Grid(), "
        "space={'seed': choice(0, 1)}, objectives=(mean_psnr(),))\n"
    )
    verb = read_verb(["sweep", "question.py"])
    assert (verb.recipe, verb.include) == ("q", [Path("small.yaml")])


HAS_ALL = ClusterInfo(
    python="3.11.2",
    versions={"ray": "2.60.0", "torch": "2.13.0", "mlflow": "3.17.2"},
    holds_mergevq=False,
    environment={},
    tracking=False,
)
NEEDS = [
    Requirement(text) for text in ("ray[train]>=2.60,<3", "torch>=2.6", "mlflow>=3.10,<4", "einops>=0.8")
]


def test_missing_packages_are_installed_and_present_ones_are_not() -> None:
    plan = compare(HAS_ALL, NEEDS)
    assert plan.install == ["einops>=0.8"]


def test_a_cluster_that_cannot_run_us_is_refused_with_the_reason() -> None:
    old_python = ClusterInfo(**{**vars(HAS_ALL), "python": "3.10.1"})
    with pytest.raises(InputError, match=r"runs Python 3\.10\.1, mergevq needs >=3\.11"):
        compare(old_python, NEEDS)
    old_ray = ClusterInfo(**{**vars(HAS_ALL), "versions": {**HAS_ALL.versions, "ray": "2.9.0"}})
    with pytest.raises(InputError, match=r"runs ray 2\.9\.0, mergevq needs"):
        compare(old_ray, NEEDS)


def test_an_old_or_other_torch_is_said() -> None:
    old = ClusterInfo(**{**vars(HAS_ALL), "versions": {**HAS_ALL.versions, "torch": "2.1.0"}})
    plan = compare(old, NEEDS)
    assert "torch>=2.6" in plan.install
    assert any("torch is installed for this job" in warning for warning in plan.warnings)
    other = ClusterInfo(**{**vars(HAS_ALL), "versions": {**HAS_ALL.versions, "torch": "2.99.1"}})
    assert any("torch is 2.99.1 there" in warning for warning in compare(other, NEEDS).warnings)


def test_the_requirements_are_those_of_pyproject() -> None:
    names = {requirement.name for requirement in packages.requirements()}
    assert {"ray", "torch", "mlflow"} <= names
    assert "pytest" not in names  # an extra


def environment_of(
    monkeypatch: pytest.MonkeyPatch,
    info: ClusterInfo = HAS_ALL,
    *,
    cluster_is_local: bool = False,
    home: str | None = "/shared",
    **variables: str,
) -> dict[str, str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return environment(info, home=home, verb="train", cluster_is_local=cluster_is_local)


def test_a_jobs_environment_holds_places_and_no_secrets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    found = environment_of(
        monkeypatch, MLFLOW_TRACKING_URI="https://mlflow.example", MERGEVQ_STORAGE="s3://b/x"
    )
    assert found == {
        "MERGEVQ_HOME": "/shared",
        "MERGEVQ_STORAGE": "s3://b/x",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
    }
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        environment_of(monkeypatch, MLFLOW_TRACKING_URI="https://me:hunter2@mlflow.example")
    assert "hunter2" not in str(refusal.value)


def test_a_home_that_would_vanish_with_the_job_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="give --home PATH"):
        environment_of(monkeypatch, home=None)
    with pytest.raises(InputError, match="absolute path"):
        environment_of(monkeypatch, home="runs")
    told = ClusterInfo(**{**vars(HAS_ALL), "environment": {"MERGEVQ_HOME": "/mnt/runs"}})
    assert "MERGEVQ_HOME" not in environment_of(monkeypatch, told, home=None)  # the cluster's own stands


def test_a_tracking_server_of_this_machine_is_no_use_to_another(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is this machine's"):
        environment_of(monkeypatch, MLFLOW_TRACKING_URI="http://127.0.0.1:5000")
    found = environment_of(monkeypatch, cluster_is_local=True, MLFLOW_TRACKING_URI="http://127.0.0.1:5000")
    assert found["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"


def test_tokens_are_tried_in_order_from_environment_then_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    given = tmp_path / "given"
    given.write_text("two\n")
    home = tmp_path / "runs"
    home.mkdir()
    (home / "ray_token").write_text("three")
    found = tokens({"RAY_AUTH_TOKEN": "one", "RAY_AUTH_TOKEN_PATH": str(given)}, home)
    assert [token for _, token in found] == ["one", "two", "three"]
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH"):
        list(tokens({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, home))


def test_an_address_where_nobody_answers_is_one_line_with_the_fix(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(here / "runs"))
    assert cli.run(["submit", "--address", "http://127.0.0.1:9", "--", "train", "small.yaml"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "no Ray dashboard answers at http://127.0.0.1:9" in lines[0]
    with pytest.raises(InputError, match="jobs are submitted to the dashboard"):
        ClusterClient("ray://head:10001", home=here)


class Dashboard(BaseHTTPRequestHandler):
    """Says its version, as Ray's does."""

    def do_GET(self) -> None:
        content = json.dumps(
            {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


def test_the_address_asked_for_is_taken_whatever_the_environment_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert ClusterClient(address, home=here).get_address() == address
        server.shutdown()
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"


class GuardedDashboard(Dashboard):
    """Answers those alone who send the token "right"; remembers what all sent."""

    sent: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        self.sent.append(token)
        if token == "Bearer right":
            return super().do_GET()
        self.send_response(403 if token else 401)
        self.end_headers()
        self.wfile.write(b"no")


@pytest.mark.parametrize(("dashboard", "first"), [(Dashboard, None), (GuardedDashboard, "Bearer right")])
def test_a_token_goes_only_to_a_cluster_that_asks_for_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, dashboard: type[Dashboard], first: str | None
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    GuardedDashboard.sent.clear()
    with HTTPServer(("127.0.0.1", 0), dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        if dashboard is GuardedDashboard:
            with pytest.raises(InputError, match="asks for a token and refuses that of RAY_AUTH_TOKEN: set"):
                ClusterClient(address, home=here)
            assert GuardedDashboard.sent[0] is None
        (here / "ray_token").write_text("right")
        client = ClusterClient(address, home=here)
        assert client.token_headers.get("Authorization") == first
        server.shutdown()


def test_what_is_no_dashboard_is_said_in_one_line(here: Path) -> None:
    class Broken(Dashboard):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"answers with status 500: is it a Ray dashboard\?$"):
            ClusterClient(f"http://127.0.0.1:{server.server_port}", home=here)
        server.shutdown()


def test_verbs_may_be_passed_in_any_number_of_words() -> None:
    assert read_verb(["recipes", "demo"]) == Verb(words=["recipes", "demo"], recipe="demo")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data.path", ["small.yaml", "data.path=shapes"]),
        ("task.codes", ["demo_mergear", "data.path=/shared/shapes", "task.codes=runs/codes"]),
        (
            "task.tokenizer",
            ["demo_mergear", "data.path=/shared/shapes", "task.codes=null", "task.tokenizer=runs/ray/x"],
        ),
        (
            "task.tokenizer",
            [
                "recovery_gr_256",
                "data.path=/shared/x",
                "task.tokenizer=runs/ray/x",
                "task.generator=s3://b/g",
            ],
        ),
        (
            "task.generator",
            [
                "recovery_gr_256",
                "data.path=/shared/x",
                "task.tokenizer=/shared/t",
                "task.generator=runs/ray/x",
            ],
        ),
    ],
)
def test_what_a_job_reads_is_named_where_the_cluster_sees_it(key: str, words: list[str], here: Path) -> None:
    with pytest.raises(InputError, match=rf"^{key} is '.*', a relative path: .*{key}=/shared/"):
        read_verb(["train", *words])


@pytest.mark.parametrize("name", ["tokens", "models:/tokens@champion"])
def test_an_upstream_may_be_the_name_of_a_run_that_the_cluster_knows(name: str, here: Path) -> None:
    words = ["train", "demo_mergear", "data.path=/shared/shapes", "task.codes=null", f"task.tokenizer={name}"]
    assert read_verb(words).recipe == "demo_mergear"
    (here / name).mkdir(parents=True)
    if "/" not in name:
        with pytest.raises(InputError, match=r"^task\.tokenizer is 'tokens', a relative path"):
            read_verb(words)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_this_machine_is_asked_without_the_proxy(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable == "HTTP_PROXY":
        monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "example.org")
    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for host in ("127.0.0.1", "localhost"):
            cluster = ClusterClient(f"http://{host}:{server.server_port}", home=tmp_path)
            assert cluster.about
        assert os.environ["no_proxy"].startswith("example.org,127.0.0.1")
        from requests.utils import should_bypass_proxies

        assert should_bypass_proxies(f"http://127.0.0.1:{server.server_port}", no_proxy=None)
        assert should_bypass_proxies("http://[::1]:8265", no_proxy=None)
        assert not should_bypass_proxies("http://head:8265", no_proxy=None)
    finally:
        server.shutdown()


def test_what_each_spelling_of_no_proxy_spares_stays_spared() -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "no_proxy": "a.org", "NO_PROXY": "b.org, .c.org"}
    spare_loopback(environ)
    assert environ["no_proxy"] == "a.org,127.0.0.1,localhost,::1,[::1]"
    assert environ["NO_PROXY"] == "b.org,.c.org,127.0.0.1,localhost,::1,[::1]"
    for spelling in ("no_proxy", "NO_PROXY"):
        alone = {"http_proxy": "http://p:1", spelling: "a.org"}
        spare_loopback(alone)
        assert alone["no_proxy"] == alone["NO_PROXY"] == "a.org,127.0.0.1,localhost,::1,[::1]"
    everything = {"http_proxy": "http://p:1", "NO_PROXY": "*"}
    spare_loopback(everything)
    assert everything["no_proxy"] == everything["NO_PROXY"] == "*"
    without: dict[str, str] = {"no_proxy": "a.org"}
    spare_loopback(without)
    assert without == {"no_proxy": "a.org"}


def test_a_proxy_that_stands_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"through the proxy of http_proxy: add head.invalid to no_proxy"
    ) as error:
        ClusterClient("http://head.invalid:8265", home=tmp_path)
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("no_proxy", "head.invalid")
    with pytest.raises(InputError) as direct:
        ClusterClient("http://head.invalid:8265", home=tmp_path)
    assert "proxy" not in str(direct.value)
