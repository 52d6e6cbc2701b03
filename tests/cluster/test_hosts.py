"""The SSH recipe, and the doctor on the nodes that it starts."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY = "from ray.scripts.scripts import main; main()"


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_ssh_recipe_starts_a_cluster_whose_nodes_the_doctor_examines(
    bare_cluster: Any, tmp_path: Path, small_recipe: dict[str, Any], unused_ports: list[int]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    venv = bare_cluster.python.parent.parent  # an interpreter that lacks our package
    executable(venv / "bin" / "ray", f'#!/bin/sh\nexec {bare_cluster.python} -c "{RAY}" "$@"\n')
    shell = executable(tmp_path / "ssh", '#!/bin/bash\nshift\nexec bash -c "$*"\n')
    gcs, dashboard, *agents = unused_ports
    home = tmp_path / "shared"
    folder = Path("/tmp") / f"mergevq-ssh-{secrets.token_hex(3)}"
    small = "--object-store-memory=100000000 --num-cpus=1 --dashboard-agent-listen-port={}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "MERGEVQ_VENV": str(venv),
        "MERGEVQ_HOME": str(home),
        "MERGEVQ_SSH": str(shell),
        "MERGEVQ_HEAD_ADDRESS": "127.0.0.1",
        "MERGEVQ_RAY_PORT": str(gcs),
        "MERGEVQ_DASHBOARD_PORT": str(dashboard),
        "MERGEVQ_RAY_FOLDER": str(folder),
        "MERGEVQ_HEAD_OPTIONS": small.format(agents[0]) + f" --ray-client-server-port={agents[2]}",
        "MERGEVQ_WORKER_OPTIONS": small.format(agents[1]) + f" --temp-dir={folder}-worker",
        "MERGEVQ_DOWN": f"pkill -KILL -f {folder}",  # `ray stop` would end every cluster of this machine
    }
    script = ROOT / "jobs" / "cluster" / "ssh.sh"
    try:
        up = subprocess.run(
            [script, "up", "head", "worker"], env=environment, capture_output=True, text=True, timeout=400
        )
        assert up.returncode == 0, up.stdout + up.stderr
        token = home / "ray_token"
        assert token.stat().st_mode & 0o777 == 0o600
        answer = bare_cluster.mergevq(
            *("submit", "--address", f"http://127.0.0.1:{dashboard}", "--name", "examined"),
            *("--", "doctor", "small.yaml"),  # the home is the cluster's own
            cwd=tmp_path,
            RAY_AUTH_TOKEN_PATH=str(token),
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        lines = answer.stdout.splitlines()
        assert any("seen from 2 node(s)" in line for line in lines), answer.stdout
        assert any("gloo all-reduce of 32 MiB among 2" in line for line in lines), answer.stdout
        assert any("the same on 2 node(s)" in line for line in lines), answer.stdout
        assert not list((home / "ray").glob(".mergevq-doctor-*"))
    finally:
        subprocess.run([script, "down", "head"], env=environment, check=False)
        left = [p for p in psutil.process_iter() if str(folder) in " ".join(safe(p))]
        psutil.wait_procs(left, timeout=20)
        subprocess.run(["rm", "-rf", folder, f"{folder}-worker"], check=False)
    assert not [p for p in psutil.process_iter() if str(folder) in " ".join(safe(p))]


@pytest.mark.cluster
def test_the_doctor_examines_this_machine_without_ray_and_exits_with_its_findings(
    bare_cluster: Any, tmp_path: Path, small_recipe: dict[str, Any]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    good = bare_cluster.mergevq(
        "doctor", "small.yaml", cwd=tmp_path, MERGEVQ_HOME=str(tmp_path / "home"), RAY_API_SERVER_ADDRESS=""
    )
    assert good.returncode == 0, good.stdout + good.stderr
    assert "gloo all-reduce of 32 MiB among 2" in good.stdout
    assert good.stdout.splitlines()[-1].startswith("ready")
    bad = bare_cluster.mergevq(
        *(
            "doctor",
            "small.yaml",
            "data.path=/nowhere",
            "cluster.device=cuda",
            "cluster.workers=8",
            "micro_batch=1",
        ),
        cwd=tmp_path,
        MERGEVQ_HOME=str(tmp_path / "home"),
    )
    assert bad.returncode == 1
    assert "fail  data" in bad.stdout
    assert "the recipe asks for 8 GPUs" in bad.stdout


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def safe(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.pid != os.getpid() else []
    except psutil.Error:
        return []
