"""``ops/k8s``, as kustomize resolves it: valid by Kubernetes' own schemas, and of one piece."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from inturn import Settings
from inturn.models.states import Lane
from inturn.workers.telemetry import DEFINITIONS
from ops.server_process import ServerUnavailableError
from tests.composition import ROOT, image, services

K8S = ROOT / "ops" / "k8s"
VERSIONS = ("1.31", kubernetes_validate.latest_version())
Resource = dict[str, Any]


def resolved(name: str) -> list[Resource]:
    """What ``kubectl apply --kustomize`` would send."""
    program = next(filter(None, map(shutil.which, ("kustomize", "kubectl"))), None)
    if program is None:
        raise ServerUnavailableError("neither kustomize nor kubectl here: install one")
    words = ["build"] if program.endswith("kustomize") else ["kustomize"]
    done = subprocess.run([program, *words, K8S / name], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def base() -> list[Resource]:
    return resolved("base")


@pytest.fixture(scope="module")
def keda() -> list[Resource]:
    return resolved("keda")


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {each["metadata"]["name"]: each for each in resources if each["kind"] == kind}


def pods(resources: list[Resource]) -> dict[str, Resource]:
    """The templates of pods by the name of what makes them."""
    makers = of_kind(resources, "Deployment") | of_kind(resources, "Job")
    return {name: maker["spec"]["template"] for name, maker in makers.items()}


def containers(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    for name, pod in pods(resources).items():
        yield from ((name, container) for container in pod["spec"]["containers"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["base", "keda"])
def test_every_resource_keeps_to_the_schema(request: pytest.FixtureRequest, name: str, version: str) -> None:
    resources: list[Resource] = request.getfixturevalue(name)
    assert len(resources) > 10
    for resource in resources:
        if not resource["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(resource, version, strict=True)


def test_what_breaks_the_schema_is_found(base: list[Resource]) -> None:
    [budget, *_] = of_kind(base, "PodDisruptionBudget").values()
    wrong = budget | {"spec": {"maxUnavailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_every_lane_has_its_worker_and_its_budget(base: list[Resource]) -> None:
    deployments, budgets = of_kind(base, "Deployment"), of_kind(base, "PodDisruptionBudget")
    assert deployments.keys() == {*(f"inturn-worker-{lane}" for lane in Lane), "inturn-beat", "inturn-flower"}
    for lane in Lane:
        worker, budget = deployments[f"inturn-worker-{lane}"], budgets[f"inturn-worker-{lane}"]
        [container] = worker["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["worker", "--lanes", lane]
        assert budget["spec"]["selector"]["matchLabels"] == worker["spec"]["selector"]["matchLabels"]
        assert budget["spec"]["selector"]["matchLabels"]["inturn/lane"] == lane
    assert len(budgets) == len(Lane)


def test_no_two_select_each_others_pods(base: list[Resource]) -> None:
    selectors = {name: each["spec"]["selector"]["matchLabels"] for name, each in of_kind(base, "Deployment").items()}
    for name, selector in selectors.items():
        chosen = [other for other, pod in pods(base).items() if selector.items() <= pod["metadata"]["labels"].items()]
        assert chosen == [name]
    [service] = of_kind(base, "Service").values()
    assert service["spec"]["selector"] == selectors[service["metadata"]["name"]]


def test_there_is_one_beat_and_one_migration(base: list[Resource]) -> None:
    beat, [job] = of_kind(base, "Deployment")["inturn-beat"], of_kind(base, "Job").values()
    assert beat["spec"]["replicas"] == 1
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == services()["migrate"]["command"] == ["db", "upgrade"]


def test_a_stopping_worker_is_given_the_time_that_its_calls_may_take(base: list[Resource]) -> None:
    fields = Settings.model_fields
    needs = fields["attempt_deadline_seconds"].default + fields["shutdown_grace_seconds"].default
    for lane in Lane:
        assert pods(base)[f"inturn-worker-{lane}"]["spec"]["terminationGracePeriodSeconds"] > needs


def test_every_pod_is_confined(base: list[Resource]) -> None:
    user = int(services()["beat"]["user"].split(":")[0])
    for name, pod in pods(base).items():
        about = pod["spec"]["securityContext"]
        assert (about["runAsNonRoot"], about["runAsUser"]) == (True, user), name
        assert about["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["serviceAccountName"] in of_kind(base, "ServiceAccount")
        assert "hostNetwork" not in pod["spec"]
    for name, container in containers(base):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"]), "a version, and no moving name"
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert {each["mountPath"] for each in container["volumeMounts"]} == {image()["environment"]["HOME"]}


def test_every_process_is_asked_how_it_is_where_it_answers(base: list[Resource]) -> None:
    [settings] = of_kind(base, "ConfigMap").values()
    for name, container in containers(base):
        if name == "inturn-migrate":
            continue
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness", "startup")}
        [port] = container["ports"]
        assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in paths} == {port["name"]}
        if name == "inturn-flower":
            assert set(paths.values()) == {"/healthcheck"}
            continue
        assert paths == {"liveness": "/livez", "readiness": "/readyz", "startup": "/livez"}
        assert str(port["containerPort"]) == settings["data"]["INTURN_METRICS_PORT"]
        annotations = pods(base)[name]["metadata"]["annotations"]
        assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port["containerPort"])}


def test_secrets_come_from_the_secret_and_settings_are_settings(base: list[Resource]) -> None:
    assert of_kind(base, "Secret") == {}, "none is in the repository"
    [settings] = of_kind(base, "ConfigMap").values()
    assert {name.removeprefix("INTURN_").lower() for name in settings["data"]} <= Settings.model_fields.keys()
    for name, container in containers(base):
        sources = [*container.get("envFrom", []), *(each["valueFrom"] for each in container.get("env", []))]
        assert sources, name
        named = [source.get("secretRef") or source.get("secretKeyRef") for source in sources]
        assert {each["name"] for each in named if each} == {settings["metadata"]["name"]}


def test_nobody_talks_but_to_whom_a_policy_names(base: list[Resource]) -> None:
    policies = of_kind(base, "NetworkPolicy")
    deny = policies.pop("inturn-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    labels = deny["podSelector"]["matchLabels"]
    assert all(labels.items() <= pod["metadata"]["labels"].items() for pod in pods(base).values())
    assert all(labels.items() <= each["spec"]["podSelector"]["matchLabels"].items() for each in policies.values())
    assert "inturn" not in str(policies["inturn-stores"]["spec"]["egress"]), "kustomize adds its labels to others' pods"
    [metrics] = policies["inturn-metrics"]["spec"]["ingress"]
    [settings] = of_kind(base, "ConfigMap").values()
    assert [str(port["port"]) for port in metrics["ports"]] == [settings["data"]["INTURN_METRICS_PORT"]]


def test_workers_are_scaled_by_the_oldest_turn_that_waits(keda: list[Resource]) -> None:
    scaled, deployments = of_kind(keda, "ScaledObject"), of_kind(keda, "Deployment")
    assert scaled.keys() == {"inturn-worker-chat", "inturn-worker-batch"}
    assert "inturn_oldest_ready_age_seconds" in {what.name for what in DEFINITIONS}
    for name, each in scaled.items():
        spec = each["spec"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert "replicas" not in deployments[name]["spec"], "an apply would set KEDA's number back"
        assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
        [trigger] = spec["triggers"]
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "Value")
        lane = deployments[name]["spec"]["selector"]["matchLabels"]["inturn/lane"]
        assert trigger["metadata"]["query"] == f'max(inturn_oldest_ready_age_seconds{{lane="{lane}"}})'
        assert float(trigger["metadata"]["threshold"]) > 0
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "as KEDA's schema has it"
    assert deployments["inturn-worker-maintenance"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pace_of_scaling_is_one_that_an_autoscaler_takes(keda: list[Resource], version: str) -> None:
    """KEDA hands it on to a HorizontalPodAutoscaler as it is; KEDA's own schema comes with no Python package."""
    for name, each in of_kind(keda, "ScaledObject").items():
        spec = each["spec"]
        assert spec.keys() == {
            "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers",
        }  # fmt: skip
        autoscaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]},
                "minReplicas": spec["minReplicaCount"],
                "maxReplicas": spec["maxReplicaCount"],
                "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
            },
        }
        kubernetes_validate.validate(autoscaler, version, strict=True)


def test_every_file_is_part_of_it() -> None:
    named = set()
    for path in K8S.rglob("kustomization.yaml"):
        about = yaml.safe_load(path.read_text())
        named |= {path, *((path.parent / name).resolve() for name in about["resources"])}
    assert {path for path in K8S.rglob("*") if path.is_file()} == {path for path in named if Path(path).is_file()}
