"""A TrainJob for Kubeflow Trainer: from cluster.yaml's `nodes` to the SDK's objects."""

from dataclasses import dataclass
from typing import Any

from kubeflow.trainer import CustomTrainerContainer, options

NODE = "node"  # the replicated job and the container of Kubeflow Trainer's torch runtimes
JOB_URI = "must/job"  # annotation: the folder of the job's input and model
RUN, RUN_NAME = "pipeline/runid", "must/run"  # label and annotation: the run whose launcher waits for the job
MODEL = "must/model"  # label: the model's name in the registry
POD_LABELS = {"app.kubernetes.io/name": "must"}  # of the job and its pods; used by deploy/network-policy.yaml
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}  # in a mesh torchrun's processes do not reach each other


@dataclass(frozen=True)
class Request:
    """The arguments of `TrainerClient.train`."""

    name: str
    runtime: str
    trainer: CustomTrainerContainer
    options: list[Any]


def request(name: str, nodes: dict[str, Any], job: str) -> Request:
    """The job that runs `must.runtime.node` for the folder `job` on every node; `nodes`: from cluster/nodes.py."""
    gpus = int(nodes["gpus"])
    processes = max(1, gpus) if nodes["processes"] == "auto" else int(nodes["processes"])
    resources = {nodes["accelerator"]: str(gpus)} if gpus else {}
    resources |= {key: nodes[key] for key in ("cpu", "memory") if nodes[key]}
    trainer = CustomTrainerContainer(
        image=nodes["image"],
        num_nodes=int(nodes["nodes"]),
        resources_per_node=resources or None,
        env=environment(nodes),
    )
    chosen = [
        options.Name(name),
        options.Labels({**POD_LABELS, **nodes["labels"]}),
        options.Annotations({JOB_URI: job}),
        options.TrainerCommand(["python", "-m", "must.method.distributed.torchrun"]),
        # Trainer gives torchrun the nodes and the meeting point by PET_ variables; a flag wins over them.
        options.TrainerArgs([f"--nproc-per-node={processes}", "-m", "must.runtime.node", job]),
        options.RuntimePatch(pod_patch(nodes)),
    ]
    if nodes["timeout"]:
        chosen.append(options.ActiveDeadlineSeconds(int(nodes["timeout"])))
    return Request(name, nodes["runtime"], trainer, chosen)


def environment(nodes: dict[str, Any]) -> dict[str, str]:
    env = {"PYTHONUNBUFFERED": "1", **nodes["env"]}
    if nodes["secret"]:
        env[nodes["secret_variable"]] = f"{nodes['secret_mount']}/{nodes['secret_key']}"
    return env


def pod_patch(nodes: dict[str, Any]) -> options.TrainingRuntimeSpecPatch:
    """Selector, tolerations, volumes and service account, at the depth where a TrainJob has them."""
    volumes, mounts = volumes_of(nodes)
    pod = options.PodSpecPatch(
        service_account_name=nodes["service_account"] or None,
        node_selector=nodes["node_selector"] or None,
        tolerations=nodes["tolerations"] or None,
        image_pull_secrets=[{"name": secret} for secret in nodes["pull_secrets"]] or None,
        volumes=volumes or None,
        containers=[options.ContainerPatch(NODE, volume_mounts=mounts)] if mounts else None,
    )
    # Istio reads the label, its older versions the annotation.
    metadata = {"labels": {**POD_LABELS, **nodes["labels"], **NO_SIDECAR}, "annotations": NO_SIDECAR}
    template = options.PodTemplatePatch(metadata=metadata, spec=pod)
    job = options.JobTemplatePatch(spec=options.JobSpecPatch(template=template))
    job_set = options.JobSetSpecPatch(replicated_jobs=[options.ReplicatedJobPatch(NODE, job)])
    return options.TrainingRuntimeSpecPatch(template=options.JobSetTemplatePatch(spec=job_set))


def volumes_of(nodes: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, mount: str, **source: Any) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": mount})

    if nodes["shm"]:
        add("shm", "/dev/shm", emptyDir={"medium": "Memory", "sizeLimit": nodes["shm"]})
    if nodes["claim"]:
        add("data", nodes["mount"], persistentVolumeClaim={"claimName": nodes["claim"]})
    if nodes["secret"]:
        add("key", nodes["secret_mount"], secret={"secretName": nodes["secret"]})
    return volumes, mounts
