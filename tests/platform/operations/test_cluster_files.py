"""The files of jobs/cluster: valid where a schema says what that is, in step with pyproject, honest about what was tried."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "jobs" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDS = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["platform"])}
KUBERNETES = sorted([*FOLDER.glob("kuberay-*.yaml"), FOLDER / "mlflow.yaml", FOLDER / "storage.yaml"])
KUBERNETES_VERSION = "1.33.0"

# KubeRay's schemas are in no package of ours; these are the field names of its Go types (ray-operator/apis/ray/v1).
CLUSTER_FIELDS = {
    *(
        "suspend",
        "managedBy",
        "authOptions",
        "autoscalerOptions",
        "headServiceAnnotations",
        "upgradeStrategy",
    ),
    *(
        "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "rayVersion",
        "workerGroupSpecs",
    ),
}
GROUP_FIELDS = {
    *(
        "template",
        "headService",
        "enableIngress",
        "resources",
        "labels",
        "rayStartParams",
        "serviceType",
        "suspend",
    ),
    *(
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "idleTimeoutSeconds",
        "scaleStrategy",
        "numOfHosts",
    ),
}
JOB_FIELDS = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata"),
    *("clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML"),
    *("jobId", "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "suspend"),
    *("ttlSecondsAfterFinished", "shutdownAfterJobFinishes"),
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in FOLDER.glob("kuberay-*.yaml"):
        for document in documents(path):
            spec = document["spec"]
            yield path.name, spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_files_fit_kubernetes_schemas(path: Path) -> None:
    for document in documents(path):
        if not document["apiVersion"].startswith("ray.io/"):
            check(document)
            continue
        spec = document["spec"]
        if document["kind"] == "RayJob":
            assert set(spec) <= JOB_FIELDS
            yaml.safe_load(spec["runtimeEnvYAML"])
            spec = spec["rayClusterSpec"]
        assert set(spec) <= CLUSTER_FIELDS
        for group in groups(spec):
            assert set(group) <= GROUP_FIELDS
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]})


def test_a_broken_pod_is_noticed() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "imagge": "b"}]}})


def test_the_ray_up_file_fits_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    config = prepare_config(config)  # as `ray up` does: the provider's defaults filled in
    validate_config(config)
    with pytest.raises(Exception, match=r"provider|required"):
        validate_config({key: value for key, value in config.items() if key != "provider"})


@pytest.mark.parametrize("name", ["ssh.sh", "slurm.sh"])
def test_shell_files_parse(name: str) -> None:
    subprocess.run(["bash", "-n", FOLDER / name], check=True)
    assert (FOLDER / name).stat().st_mode & 0o111


def test_clusters_ask_for_tokens_share_storage_and_open_nothing() -> None:
    found = list(clusters())
    assert len(found) == 3
    for _, cluster in found:
        assert cluster["authOptions"] == {"mode": "token"}
        for group in groups(cluster):
            assert "serviceType" not in group  # ClusterIP
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            names = {entry["name"]: entry["value"] for entry in container["env"]}
            assert names["MERGEVQ_HOME"].startswith("/shared/")
            assert {"/shared", "/dev/shm"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
            claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v]
            assert claims == ["mergevq-shared"]
    for path in (*KUBERNETES, FOLDER / "ray-up.yaml", FOLDER / "ssh.sh", FOLDER / "slurm.sh"):
        text = path.read_text()
        assert not re.search(r"LoadBalancer|NodePort|dashboard-host=0\.0\.0\.0", text), path
        if path.name in ("ray-up.yaml", "ssh.sh", "slurm.sh"):
            assert "RAY_AUTH_MODE=token" in text


def test_no_file_holds_a_secret() -> None:
    for document in (d for path in KUBERNETES for d in documents(path)):
        assert document["kind"] != "Secret"
        for container in containers(document):
            for entry in container.get("env", []):
                if re.search("PASSWORD|SECRET|KEY", entry["name"]):
                    assert "valueFrom" in entry, entry


def containers(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield from tree.get("containers", [])
        for value in tree.values():
            yield from containers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from containers(value)


def test_mlflow_answers_only_named_hosts_and_those_that_the_clusters_use() -> None:
    (server,) = [c for d in documents(FOLDER / "mlflow.yaml") for c in containers(d) if c["name"] == "mlflow"]
    (allowed,) = [a.partition("=")[2].split(",") for a in server["args"] if a.startswith("--allowed-hosts=")]
    assert "*" not in allowed
    uris = {
        entry["value"]
        for _, cluster in clusters()
        for group in groups(cluster)
        for entry in group["template"]["spec"]["containers"][0]["env"]
        if entry["name"] == "MLFLOW_TRACKING_URI"
    }
    assert {uri.removeprefix("http://") for uri in uris} <= set(allowed)


def test_versions_and_images_are_in_step_with_pyproject() -> None:
    image = f"mergevq:{PROJECT['version']}"
    everything = {path.name: path.read_text() for path in FOLDER.iterdir() if path.is_file()}
    named = {found for text in everything.values() for found in re.findall(r"\bmergevq:[\w.]+", text)}
    assert named == {image}
    ray = set(re.findall(r'rayVersion: "([\d.]+)"', "".join(everything.values())))
    (base,) = re.findall(
        r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-gpu$", everything["Dockerfile"], re.MULTILINE
    )
    assert ray == {base[0]}
    assert Version(base[0]) in NEEDS["ray"].specifier
    assert Version(f"{base[1]}.{base[2]}") in Requirement(f"python{PROJECT['requires-python']}").specifier
    (mlflow,) = re.findall(r"mlflow==([\d.]+)", everything["Dockerfile"])
    assert Version(mlflow) in NEEDS["mlflow"].specifier


def test_the_readme_says_of_every_file_what_its_header_says() -> None:
    rows = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {}
    for row in rows:
        files, _, status = (cell.strip() for cell in row.strip("|").split("|"))
        word = re.match(r"\*([a-z -]+)\*", status)
        assert word, row
        told |= dict.fromkeys(re.findall(r"`([^`]+)`", files), word[1])
    assert set(told) == {path.name for path in FOLDER.iterdir()} - {"README.md"}
    for name, status in told.items():
        header = re.search(
            r"^# Status: (executed|schema-validated|not tried)", (FOLDER / name).read_text(), re.MULTILINE
        )
        assert header, name
        assert header[1] == status, name
