"""The manifests in deploy/: each is one that Kubernetes' own models take, and what refers to something finds it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from must import __version__
from must.api.cli import build_parser
from must.model.distributed import SHUTDOWN_TIMEOUT
from must_pipeline.cluster import ClusterConfig
from tests.common import ROOT

DEPLOY = ROOT / "deploy"
RECORDED = json.loads((Path(__file__).parent / "recorded" / "argo.json").read_text())
FILES = sorted(path for path in DEPLOY.glob("*.yaml") if path.name not in ("kustomization.yaml", "argo-retries.yaml"))


def documents():
    return [(path.name, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize(
    "name, document",
    [
        (name, document)
        for name, document in documents()
        if document["kind"] not in ("TrainingRuntime", "InferenceService")
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_kubernetes_models_know_every_field(name, document):
    from kubernetes import client

    def check(value, kind):
        if isinstance(value, list):
            return [check(item, kind) for item in value]
        known = {key: attribute for attribute, key in kind.attribute_map.items()}
        for key, item in value.items():
            assert key in known, f"{name}: {kind.__name__} has no {key}"
            inner = kind.openapi_types[known[key]].removeprefix("list[").removesuffix("]")
            if hasattr(client, inner):
                check(item, getattr(client, inner))
        return None

    check(document, getattr(client, f"V1{document['kind']}"))


def test_the_server_on_kserve_follows_the_registry():
    """KServe's predictor is a pod's spec, and the numbers of replicas."""
    from kubernetes import client

    (service,) = [document for _, document in documents() if document["kind"] == "InferenceService"]
    pod = service["spec"]["predictor"].keys() - {"minReplicas"}
    assert pod <= set(client.V1PodSpec.attribute_map.values())
    (container,) = service["spec"]["predictor"]["containers"]
    assert container.keys() <= set(client.V1Container.attribute_map.values())
    assert (container["name"], container["image"]) == ("kserve-container", f"must-serve:{__version__}")
    values = vars(build_parser().parse_args(container["args"][1:]))
    assert values["registry"].startswith("gs://") and values["host"] == "0.0.0.0"
    assert [values["port"]] == [str(port["containerPort"]) for port in container["ports"]]


def test_the_training_runtime_is_one_that_trainer_takes():
    """Its published models know every field; the rest is what its webhook (2.3) and the SDK (0.5) ask for."""
    from kubeflow_trainer_api import models  # a thousand models, which every process that collects tests would wait for

    (runtime,) = [document for _, document in documents() if document["kind"] == "TrainingRuntime"]
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    assert runtime["metadata"]["name"] == ClusterConfig().training.runtime and "namespace" not in runtime["metadata"]
    job_set = runtime["spec"]["template"]["spec"]
    (part,) = job_set["replicatedJobs"]
    assert (part["name"], part["replicas"]) == ("node", 1)
    assert part["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (container,) = part["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "node" and container["image"]
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}  # the least
    job = part["template"]["spec"]  # a node fails once, and has time to save a checkpoint
    template = job["template"]
    assert (job_set["failurePolicy"]["maxRestarts"], job["backoffLimit"]) == (0, 0)
    assert template["spec"]["restartPolicy"] == "Never"
    assert template["spec"]["terminationGracePeriodSeconds"] >= int(SHUTDOWN_TIMEOUT)  # which torchrun's have
    for kind in ("labels", "annotations"):
        assert template["metadata"][kind]["sidecar.istio.io/inject"] == "false"


def test_bindings_name_roles_and_accounts_that_exist():
    content = [document for _, document in documents()]
    names = {(document["kind"], document["metadata"]["name"]) for document in content}
    bindings = [document for document in content if document["kind"] == "RoleBinding"]
    assert len(bindings) == 4
    for binding in bindings:
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in names
        ours = [subject for subject in binding["subjects"] if "namespace" not in subject]
        assert ours and all((subject["kind"], subject["name"]) in names for subject in ours)


def test_pods_that_decode_images_may_read_one_secret_and_start_nothing():
    """By what `kubectl apply -k deploy/` makes, of files that all have to be there."""
    files = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    made = [document for name in files for document in yaml.safe_load_all((DEPLOY / name).read_text())]
    content = [(document["kind"], document.get("rules", [])) for document in made]
    rules = [rule for _, rules in content for rule in rules]
    assert len(rules) > 5
    for rule in rules:
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["verbs"] and rule["resourceNames"]  # without names it would be all of them
        assert "trainer.kubeflow.org" not in rule["apiGroups"]
        assert "pods" not in rule["resources"] or set(rule["verbs"]) <= {"get", "list", "watch"}
    assert not {"ClusterRole", "ClusterRoleBinding"} & {kind for kind, _ in content}  # a namespace's admin applies it


def test_a_quota_comes_with_requests_for_pods_that_name_none():
    """Kubeflow's own pods name none, and a quota on cores or memory refuses them."""
    quota, limits = yaml.safe_load_all((DEPLOY / "quota.yaml").read_text())
    counted = {key.removeprefix("requests.") for key in quota["spec"]["hard"]} & {"cpu", "memory"}
    (container,) = limits["spec"]["limits"]
    assert container["type"] == "Container" and "default" not in container
    assert counted == set(container["defaultRequest"])


def test_the_network_policies_deny_what_is_not_listed():
    policies = list(yaml.safe_load_all((DEPLOY / "network-policy.yaml").read_text()))
    assert [policy["metadata"]["name"] for policy in policies] == ["must-stages", "must-trainjobs", "must-server"]
    for policy in policies:
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        for rule in spec["ingress"] + spec["egress"]:
            assert rule.get("from") or rule.get("to"), "a rule without this allows everybody"
            others = [each for each in rule.get("from", []) + rule.get("to", []) if "podSelector" not in each]
            assert rule.get("ports") or not others, "all ports only among the nodes of a TrainJob"
        kubeflow = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
        opened = {port["port"] for rule in spec["egress"] if kubeflow in rule["to"] for port in rule["ports"]}
        assert opened >= {8333, 9000}, "the buckets of Kubeflow's own SeaweedFS or MinIO"


def argos_setting():
    patch = yaml.safe_load((DEPLOY / "argo-retries.yaml").read_text())
    assert list(patch) == ["data"] and list(patch["data"]) == ["workflowDefaults"]
    return yaml.safe_load(patch["data"]["workflowDefaults"])


EXPRESSION = argos_setting()["spec"]["templateDefaults"]["retryStrategy"]["expression"]


def test_argos_setting_is_one_key_and_keeps_the_rest_of_pipelines_own():
    ours, tried = argos_setting()["spec"], RECORDED["expression"]["spec"]
    assert ours.pop("templateDefaults") == {"retryStrategy": {"limit": "2", "expression": EXPRESSION}}
    assert ours == {name: value for name, value in tried.items() if name != "templateDefaults"}


def as_python(expression):
    """Argo's language as far as the expression uses it; anything else is a SyntaxError or NameError of Python's."""
    for pattern, python in ((r"\|\|", " or "), ("&&", " and "), (r"!\(", " not ("), (r"lastRetry\.", "")):
        expression = re.sub(pattern, python, expression)
    return re.sub(r"(\w+) matches ('[^']*')", r"matches(\1, \2)", expression)


def repeats(phase, code, message):
    """What the expression says of a node; Argo has -1 where there is no exit code, '' where there is no message."""
    known = {"asInt": int, "matches": lambda text, pattern: re.search(pattern, text) is not None}
    node = {"status": phase, "exitCode": code or "-1", "message": message or ""}
    return eval(as_python(EXPRESSION), {"__builtins__": {}}, known | node)


@pytest.mark.parametrize("phase, code, message, repeated", [
    ("Failed", "1", "main: Error (exit code 1)", False),  # the stage itself has given up
    ("Failed", "137", "main: OOMKilled (exit code 137)", True),
    ("Error", "", "pod deleted", True),
    ("Failed", "143", "Pod was terminated in response to imminent node shutdown.", True),
    ("Failed", "143", "Pod was active on the node longer than the specified deadline", False),
    ("Error", "", 'pods "must-a" is forbidden: violates PodSecurity "restricted:latest"', False),
])  # fmt: skip
def test_argo_repeats_lost_pods_and_no_others(phase, code, message, repeated):
    assert repeats(phase, code, message) is repeated


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['done']}, {case['policy']}")
def test_what_it_says_of_the_endings_that_were_recorded(case):
    first = next(node for node in case["nodes"] if node["type"] == "Pod")
    wrong_input = case["done"].startswith("wrong input")
    said = repeats(first["phase"], first["exitCode"], first["message"])
    assert said is not wrong_input  # a terminated run has no time left to repeat anything in
    if case["policy"] == "expression":
        over = case["workflow"]["phase"] == "Succeeded"
        assert over is (not wrong_input and case["done"] != "run terminated")
