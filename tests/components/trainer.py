"""What Kubeflow Trainer 2, JobSet and Kubernetes make of a TrainJob: admission, the JobSet's job, its pods. `recorded/`
holds the objects of a real cluster (Kubernetes 1.35, Trainer 2.3.0, JobSet 0.12.0); test_stub.py compares them with
these. Where the recording is silent it is written from the controllers' code."""

import copy
import uuid
from datetime import UTC, datetime

GROUP = "trainer.kubeflow.org"
# The fields of a TrainJob's spec by version of the custom resource; the API server drops any other without a word.
ALWAYS = {"runtimeRef", "initializer", "trainer", "managedBy", "suspend"}
FIELDS = {
    "2.1": ALWAYS | {"labels", "annotations", "podTemplateOverrides"},
    "2.3": ALWAYS | {"runtimePatches", "activeDeadlineSeconds"},
}
RUNTIME = {
    "apiVersion": f"{GROUP}/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [{
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}},
        },
    }]}}},
}  # fmt: skip


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def admit(body, version, queued):
    """The TrainJob as the API server keeps it."""
    job = copy.deepcopy(body)
    spec = {name: value for name, value in job["spec"].items() if name in FIELDS[version]}
    spec = {"managedBy": f"{GROUP}/trainjob-controller", "suspend": False} | spec
    spec["runtimeRef"] = {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime"} | spec["runtimeRef"]
    for patch in spec.get("runtimePatches", []):
        patch.setdefault("time", now())
    job["spec"] = spec
    job["metadata"] |= {"namespace": "vision", "generation": 1, "resourceVersion": "1", "uid": str(uuid.uuid4())}
    job["metadata"]["creationTimestamp"] = now()
    if queued:  # as Kueue's webhook does
        spec["suspend"] = True
    return job


def build_job(job, runtime):
    """The replicated job of the JobSet: the runtime's, the TrainJob's patches and trainer, torchrun's variables."""
    (part,) = copy.deepcopy(runtime["spec"]["template"]["spec"]["replicatedJobs"])
    trainer = job["spec"].get("trainer", {})
    nodes = trainer.get("numNodes") or runtime["spec"]["mlPolicy"]["numNodes"]
    part |= {"groupName": "default", "replicas": 1}
    child = part["template"]["spec"]
    child |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    for patch in job["spec"].get("runtimePatches", []):
        for patched in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            assert patched["name"] == part["name"]  # the webhook refuses others
            merge(child["template"], patched["template"]["spec"]["template"])
    (container,) = child["template"]["spec"]["containers"]
    container |= {field: trainer[field] for field in ("args", "command", "image") if field in trainer}
    container["resources"] = trainer.get("resourcesPerNode", container.get("resources", {}))
    limits = container["resources"].get("limits", {})
    processes = "auto" if any("gpu" in resource for resource in limits) else str(limits.get("cpu", "1"))
    variables = torchrun(job["metadata"]["name"], nodes, processes)
    container["env"] = [*container.get("env", []), *trainer.get("env", []), *variables]
    container["ports"] = [{"containerPort": 29500, "protocol": "TCP"}]
    child["template"]["spec"].setdefault("restartPolicy", "OnFailure")
    return part


def torchrun(name, nodes, processes):
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "PET_NNODES", "value": str(nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": processes},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]


def merge(target, patch):
    """Strategic merge: maps key by key, containers and volumes by name, mounts by path; other lists are replaced."""
    keys = {"containers": "name", "volumes": "name", "volumeMounts": "mountPath"}
    for name, value in patch.items():
        if isinstance(value, dict):
            merge(target.setdefault(name, {}), value)
        elif name in keys:
            there = target.setdefault(name, [])
            for item in value:
                found = next((other for other in there if other[keys[name]] == item[keys[name]]), None)
                merge(found, item) if found else there.append(copy.deepcopy(item))
        else:
            target[name] = copy.deepcopy(value)


class Pod:
    """One node. `say` is its log, `Api.exit` its container's end."""

    def __init__(self, job, part, node):
        self.job, self.part, self.node, self.created, self.uid = job, part, node, now(), str(uuid.uuid4())
        self.name = f"{self.job}-node-0-{node}-{self.uid[:5]}"
        self.lines, self.restarts, self.code, self.message = [], 0, None, ""

    def say(self, *lines):
        for line in lines:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
            self.lines.append((f"{stamp}{len(self.lines) % 1000:03d}Z", line))

    def log(self, query):
        """As Kubernetes' API gives it: by whole seconds."""
        lines = [(stamp, line) for stamp, line in list(self.lines) if stamp[:19] >= query.get("sinceTime", "")[:19]]
        return "".join(f"{stamp} {line}\n" if "timestamps" in query else f"{line}\n" for stamp, line in lines)

    def restart(self):
        """In place, as restartPolicy OnFailure has it: the same pod, another container, an empty log."""
        self.restarts, self.lines, self.code = self.restarts + 1, [], None

    def to_dict(self):
        template = copy.deepcopy(self.part["template"]["spec"]["template"])
        marks = {
            "jobset.sigs.k8s.io/jobset-name": self.job, "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "jobset.sigs.k8s.io/restart-attempt": "0", "batch.kubernetes.io/job-completion-index": str(self.node),
        }  # fmt: skip
        ended = {"exitCode": self.code, "message": self.message}
        state = {"terminated": ended} if self.code is not None else {"running": {}}
        container = {
            "containerID": f"containerd://{self.uid}-{self.restarts}", "image": "x", "imageID": "x", "lastState": {},
            "name": "node", "ready": self.code is None, "restartCount": self.restarts, "started": self.code is None,
            "state": state,
        }  # fmt: skip
        metadata = {"name": self.name, "creationTimestamp": self.created}
        metadata["labels"] = template.get("metadata", {}).get("labels", {}) | marks
        spec = {"terminationGracePeriodSeconds": 30, "hostname": f"{self.job}-node-0-{self.node}", **template["spec"]}
        return {"metadata": metadata, "spec": spec, "status": {"containerStatuses": [container]}}
