"""The manifests for Kubernetes: valid by its own schemas, and as closed as their documents say."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hpsearch import environment
from hpsearch.store.connection.address import parse_url
from hpsearch.study.study_file import load_definition

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "kubernetes"
VERSION = "1.33"  # the first one in which all that we use is final
OVERLAYS = ("base", "overlays/cpu", "overlays/s3")
HPSEARCH_USER = 10001  # docker/Dockerfile

Document = dict[str, Any]


def read(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def render(folder: Path) -> list[Document]:
    """What `kubectl apply --kustomize` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here, which renders overlays; the base is looked at file by file")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no deprecated field
    return read(done.stdout)


def base_files() -> list[Document]:
    files = sorted(path for path in (KUBERNETES / "base").glob("*.yaml") if path.name != "kustomization.yaml")
    return [document for path in files for document in read(path.read_text())]


@pytest.fixture(params=["files", *OVERLAYS])
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """The base file by file, which needs no kubectl, and everything that is rendered."""
    return base_files() if request.param == "files" else render(KUBERNETES / request.param)


def one(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = [d for d in documents if d["kind"] == kind and re.sub(r"-\w{10}$", "", d["metadata"]["name"]) == name]
    return found


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and pod template of everything that runs."""
    for document in documents:
        template = document.get("spec", {}).get("template")
        if template:
            yield document["metadata"]["name"], template


def containers(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    for name, template in pods(documents):
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield f"{name}/{container['name']}", container


def variables_of(container: Document) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def test_every_document_is_valid_by_the_schemas_of_kubernetes(documents: list[Document]) -> None:
    assert {"StatefulSet", "Job", "Deployment", "Service", "NetworkPolicy"} <= {d["kind"] for d in documents}
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schemas_know_a_wrong_field_when_they_see_it() -> None:
    job = one(base_files(), "Job", "workers")
    job["spec"]["backofLimitPerIndex"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_no_document_names_a_namespace_or_opens_a_door_to_the_outside(documents: list[Document]) -> None:
    assert not [d["metadata"]["name"] for d in documents if "namespace" in d["metadata"]]
    assert "Ingress" not in {d["kind"] for d in documents}
    services = [d["spec"] for d in documents if d["kind"] == "Service"]
    assert {service.get("type", "ClusterIP") for service in services} == {"ClusterIP"}
    assert one(documents, "Service", "database")["spec"]["clusterIP"] == "None"
    assert not [name for name, template in pods(documents) if template["spec"].get("hostNetwork")]
    assert "hostPath" not in str(documents)
    assert "hostPort" not in str(documents)


def test_every_pod_keeps_to_the_restricted_profile(documents: list[Document]) -> None:
    assert len(dict(pods(documents))) == 4
    for name, template in pods(documents):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == (999 if name == "database" else HPSEARCH_USER)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert "terminationGracePeriodSeconds" in spec, name
    for name, container in containers(documents):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }, name  # fmt: skip


def test_every_container_has_requests_and_limits_and_a_version(documents: list[Document]) -> None:
    for name, container in containers(documents):
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys(), name
        assert re.search(r":[\w.-]+$", container["image"]), name
        assert not container["image"].endswith(":latest"), name
    volumes = [volume for _, template in pods(documents) for volume in template["spec"]["volumes"]]
    assert all("sizeLimit" in volume["emptyDir"] for volume in volumes if "emptyDir" in volume)


def test_everything_that_is_mounted_is_a_volume_of_its_pod(documents: list[Document]) -> None:
    claims = {"data"}  # the StatefulSet's own
    for name, template in pods(documents):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        mounts = {m["name"] for container in template["spec"]["containers"] for m in container["volumeMounts"]}
        assert mounts - claims == volumes, name
    needed = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, template in pods(documents)
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert needed == {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}


def test_the_password_is_in_a_secret_that_no_document_brings_along(documents: list[Document]) -> None:
    assert "Secret" not in {d["kind"] for d in documents}
    for _, template in pods(documents):
        (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "password"]
        assert volume["secret"] == {"secretName": "hpsearch-database", "defaultMode": 0o440}
    for name, container in containers(documents):
        values = variables_of(container)
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "password"]
        file = values.get(environment.STORAGE_PASSWORD_FILE, values.get("POSTGRES_PASSWORD_FILE"))
        assert file == f"{mount['mountPath']}/password", name
        if "HPSEARCH_STORAGE" in values:
            url = parse_url(values["HPSEARCH_STORAGE"])
            assert (url.host, url.port, url.password) == ("database", 5432, None)


def test_only_workers_study_and_dashboard_reach_the_database(documents: list[Document]) -> None:
    policy = one(documents, "NetworkPolicy", "database")["spec"]
    assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "database"
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    (client,) = rule["from"]
    assert client == {"podSelector": {"matchLabels": {"hpsearch/database": "client"}}}
    clients = {name for name, t in pods(documents) if t["metadata"]["labels"].get("hpsearch/database") == "client"}
    assert clients == {"workers", "study", "dashboard"}
    (port,) = rule["ports"]
    database = one(documents, "StatefulSet", "database")["spec"]["template"]["spec"]["containers"][0]
    assert port["port"] in [port["name"] for port in database["ports"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_calls_a_pod_but_the_database(overlay: str) -> None:
    """The rule for all pods selects a label that only rendering puts on them."""
    documents = render(KUBERNETES / overlay)
    policy = one(documents, "NetworkPolicy", "nobody-calls-us")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert "ingress" not in policy
    ((key, value),) = policy["podSelector"]["matchLabels"].items()
    assert {template["metadata"]["labels"].get(key) for _, template in pods(documents)} == {value}


def test_services_and_controllers_find_their_pods(documents: list[Document]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(documents)]
    # In the files, the pods of the workers do not yet have the label that rendering puts on all.
    selectors = [d["spec"]["selector"] for d in documents if d["kind"] == "Service"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    for selector in selectors:
        assert len([found for found in labels if selector.items() <= found.items()]) == 1


def test_workers_are_an_indexed_job_that_disruptions_do_not_use_up(documents: list[Document]) -> None:
    spec = one(documents, "Job", "workers")["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1
    assert spec["backoffLimitPerIndex"] >= 50  # a database that is away for hours counts
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    ignored, fatal = spec["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (fatal["action"], fatal["onExitCodes"]["values"]) == ("FailJob", [2])
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 10


def test_a_worker_that_hangs_is_noticed_by_its_own_health_check(documents: list[Document]) -> None:
    worker = one(documents, "Job", "workers")["spec"]["template"]["spec"]["containers"][0]
    assert worker["livenessProbe"]["exec"]["command"] == ["hpsearch", "health"]
    assert worker["startupProbe"]["exec"]["command"] == ["hpsearch", "health"]
    sign = Path(variables_of(worker)[environment.LIFE_SIGN])
    assert str(sign.parent) in [mount["mountPath"] for mount in worker["volumeMounts"]]


def test_a_worker_starts_as_many_threads_as_it_has_processors(documents: list[Document]) -> None:
    worker = one(documents, "Job", "workers")["spec"]["template"]["spec"]["containers"][0]
    assert variables_of(worker)["OMP_NUM_THREADS"]["resourceFieldRef"]["resource"] == "limits.cpu"
    cpus = worker["resources"]["limits"]["cpu"]
    assert cpus == worker["resources"]["requests"]["cpu"]
    assert cpus.isdecimal()


def test_workers_have_a_gpu_each_but_on_processors() -> None:
    for overlay in ("base", "overlays/s3"):
        worker = one(render(KUBERNETES / overlay), "Job", "workers")["spec"]["template"]["spec"]["containers"][0]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert worker["image"] == "hpsearch:cuda"
        assert "HPSEARCH_DEVICE" not in variables_of(worker)
    documents = render(KUBERNETES / "overlays/cpu")
    spec = one(documents, "Job", "workers")["spec"]["template"]["spec"]
    assert "nvidia" not in str(spec)
    assert variables_of(spec["containers"][0])["HPSEARCH_DEVICE"] == "cpu"
    assert {c["image"] for name, c in containers(documents) if "postgres" not in name} == {"hpsearch:cpu"}


def test_the_bucket_takes_the_place_of_the_shared_volume() -> None:
    documents = render(KUBERNETES / "overlays/s3")
    assert "artifacts" not in [v["name"] for _, t in pods(documents) for v in t["spec"]["volumes"]]
    for kind, name in (("Job", "workers"), ("Deployment", "dashboard")):
        container = one(documents, kind, name)["spec"]["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "hpsearch-s3"}}]
    with_volume = one(render(KUBERNETES / "base"), "PersistentVolumeClaim", "artifacts")
    assert with_volume["spec"]["accessModes"] == ["ReadWriteMany"]


def test_study_and_workers_speak_of_the_same_study() -> None:
    documents = render(KUBERNETES / "base")
    settings = one(documents, "ConfigMap", "study")
    assert settings["data"]["name"] == load_definition(KUBERNETES / "base" / "study.toml").name
    for job in ("study", "workers"):
        container = one(documents, "Job", job)["spec"]["template"]["spec"]["containers"][0]
        reference = variables_of(container)["STUDY"]["configMapKeyRef"]
        assert reference == {"name": settings["metadata"]["name"], "key": "name"}


def test_the_bases_study_is_the_quick_start() -> None:
    ours, shipped = (
        load_definition(path) for path in (KUBERNETES / "base/study.toml", ROOT / "studies/quickstart.toml")
    )
    assert ours == shipped


def test_the_overlay_in_the_document_renders(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"```yaml\n# my-study/kustomization.yaml\n(.*?)```", text, flags=re.DOTALL)
    folder = tmp_path / "my-study"
    folder.mkdir()
    relative = os.path.relpath(KUBERNETES, folder)
    (folder / "kustomization.yaml").write_text(block.replace("../kubernetes", relative))
    (folder / "mlp.toml").write_text((ROOT / "studies" / "mlp.toml").read_text())
    documents = render(folder)
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)
    settings = one(documents, "ConfigMap", "study")["data"]
    assert settings["name"] == "mlp"
    assert settings["study.toml"] == (ROOT / "studies" / "mlp.toml").read_text()
    workers = one(documents, "Job", "workers")["spec"]
    assert workers["completions"] == workers["parallelism"] == 16
    assert {c["image"].partition("/")[0] for n, c in containers(documents) if "postgres" not in n} == {
        "registry.example"
    }


def test_the_overlay_for_programs_in_the_document_mounts_the_code_and_allows_it(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"```yaml\n# my-scripts/kustomization.yaml\n(.*?)```", text, flags=re.DOTALL)
    folder = tmp_path / "my-scripts"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(block.replace("../kubernetes", os.path.relpath(KUBERNETES, folder)))
    example = ROOT / "examples" / "own_scripts"
    (folder / "train.py").write_text((example / "fit_file.py").read_text())
    (folder / "mine.toml").write_text((example / "file.toml").read_text())
    documents = render(folder)
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)
    code = one(documents, "ConfigMap", "code")
    assert list(code["data"]) == ["train.py"]
    for job in ("study", "workers"):
        pod = one(documents, "Job", job)["spec"]["template"]["spec"]
        assert pod["containers"][0]["workingDir"] == "/code"
        assert {"name": "code", "configMap": {"name": code["metadata"]["name"]}} in pod["volumes"]
    container = one(documents, "Job", "workers")["spec"]["template"]["spec"]["containers"][0]
    assert variables_of(container)["HPSEARCH_COMMANDS"] == "1"
    assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]


# The script that a worker's pod runs, with a program of ours in place of hpsearch.

FAKE = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$1" in
status) [ -e "$STUDY_IS_THERE" ] || { echo "${PROBLEM:-error: no study 'mlp'}" >&2; exit 2; } ;;
worker) exec "$WORKER" ;;
esac
"""


class Pod:
    """Runs worker.sh; `worker` is the shell script that stands for the worker."""

    def __init__(self, folder: Path, worker: str, **environment: str) -> None:
        self.folder = folder
        for name, text in (("hpsearch", FAKE), ("fake-worker", f"#!/bin/sh\n{worker}\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.process = subprocess.Popen(
            ["sh", KUBERNETES / "base" / "worker.sh"],
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "CALLS": str(folder / "calls"),
                "STUDY_IS_THERE": str(folder / "study"),
                "WORKER": str(folder / "fake-worker"),
                "STUDY": "mlp",
                "STUDY_WAIT_SECONDS": "0.05",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        self.process.communicate(timeout=240)
        return self.process.returncode


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_workers_exit_code_is_its_pods(code: int, tmp_path: Path) -> None:
    (tmp_path / "study").touch()
    assert Pod(tmp_path, f"exit {code}").end() == code
    assert (tmp_path / "calls").read_text() == "status mlp\nworker mlp\n"


def test_a_worker_waits_for_its_study(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "exit 0")
    while not (tmp_path / "calls").exists() or (tmp_path / "calls").read_text().count("status") < 2:
        assert pod.process.poll() is None
    (tmp_path / "study").touch()
    assert pod.end() == 0


def test_a_study_that_never_comes_is_not_ready_which_does_not_end_the_job(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "exit 0", STUDY_SECONDS="0")
    _, errors = pod.process.communicate(timeout=240)
    assert (pod.process.returncode, errors) == (3, "error: no study 'mlp'\n")


def test_bad_input_ends_the_job_once_the_time_is_over(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "exit 0", STUDY_SECONDS="0", PROBLEM="error: bad URL")
    _, errors = pod.process.communicate(timeout=240)
    assert (pod.process.returncode, errors) == (2, "error: bad URL\n")


def test_why_a_worker_waits_is_told_once(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "exit 0")
    while not (tmp_path / "calls").exists() or (tmp_path / "calls").read_text().count("status") < 3:
        assert pod.process.poll() is None
    (tmp_path / "study").touch()
    _, errors = pod.process.communicate(timeout=240)
    assert (pod.process.returncode, errors) == (0, "error: no study 'mlp'\n")


def test_the_startup_probe_outlasts_the_wait_for_the_study(documents: list[Document]) -> None:
    (seconds,) = re.findall(r"STUDY_SECONDS:-(\d+)", (KUBERNETES / "base" / "worker.sh").read_text())
    probe = one(documents, "Job", "workers")["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 2 * int(seconds)


def test_a_worker_that_was_stopped_in_peace_does_not_count_as_done(tmp_path: Path) -> None:
    """Exit code 0 would end its index for good, although the study goes on."""
    (tmp_path / "study").touch()
    worker = "trap 'echo given back; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    pod = Pod(tmp_path, worker)
    assert pod.line() == "ready"
    pod.process.send_signal(signal.SIGTERM)
    assert pod.line() == "given back"
    assert pod.end() == 143


def test_a_pod_that_is_stopped_while_it_waits_for_its_study_ends(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "exit 0")
    while not (tmp_path / "calls").exists():
        assert pod.process.poll() is None
    pod.process.send_signal(signal.SIGTERM)
    assert pod.end() == 143
