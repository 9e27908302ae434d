"""A TrainJob of Kubeflow Trainer as a plain dictionary, from the nodes' settings in cluster.yaml."""

from typing import Any

from must_components.cluster import RUN, TRAINER

NODE = "node"  # the replicated job and the container of Kubeflow Trainer's torch runtimes
MODEL = "must/model"  # label: the model's name in the registry
POD_LABELS = {"app.kubernetes.io/name": "must"}  # of the job and its pods; used by deploy/network-policy.yaml
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}  # in a mesh torchrun's processes do not reach each other


def make_manifest(name: str, nodes: dict[str, Any], job: str, run_id: str, model: str) -> dict[str, Any]:
    """The job that runs `must.runtime.training` for the folder `job` on every node; the runtime's kind is missing.

    `nodes`: from `encode_nodes` in must_pipeline/cluster/placement.py."""
    gpus = int(nodes["gpus"])
    processes = max(1, gpus) if nodes["processes"] == "auto" else int(nodes["processes"])
    trainer: dict[str, Any] = {
        "image": nodes["image"],
        "numNodes": int(nodes["nodes"]),
        "command": ["python", "-m", "must.method.distributed.torchrun"],
        # Trainer gives torchrun the nodes and the meeting point by PET_ variables; a flag wins over them.
        "args": [f"--nproc-per-node={processes}", "-m", "must.runtime.training", job],
        "env": nodes["env"],
    }
    resources = {nodes["accelerator"]: str(gpus)} if gpus else {}
    resources |= {key: nodes[key] for key in ("cpu", "memory") if nodes[key]}
    if resources:
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    labels = {RUN: run_id, MODEL: model.rstrip("-._")}  # Kubernetes' rule for a label's end
    return {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": POD_LABELS | nodes["labels"] | {key: value for key, value in labels.items() if value},
        },
        "spec": {
            "runtimeRef": {"name": nodes["runtime"]},
            "activeDeadlineSeconds": int(nodes["deadline"]),
            "trainer": trainer,
            "runtimePatches": [{"manager": "must/launcher", "trainingRuntimeSpec": pod_patch(nodes)}],
        },
    }


def pod_patch(nodes: dict[str, Any]) -> dict[str, Any]:
    """Selector, tolerations, volumes and service account, at the depth where a TrainJob has them."""
    mounts = nodes["mounts"]
    pod = nodes["pod"] | ({"containers": [{"name": NODE, "volumeMounts": mounts}]} if mounts else {})
    # Istio reads the label, its older versions the annotation.
    metadata = {"labels": {**POD_LABELS, **nodes["labels"], **NO_SIDECAR}, "annotations": NO_SIDECAR}
    template = {"metadata": metadata, "spec": pod}
    job = {"name": NODE, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
