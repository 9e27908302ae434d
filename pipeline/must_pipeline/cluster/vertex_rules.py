"""cluster.yaml of kind vertex: what Vertex AI Pipelines knows, and what is Kubernetes' alone and refused by name."""

import re
from typing import Any

from must.base.parameters import require
from must.base.text import did_you_mean
from must_pipeline.cluster.config import Cluster, CpuPool, Credentials, GpuPool, Retries, Training, Vertex, Volume
from must_pipeline.cluster.variables import check_variables

# The GPUs of the API's AcceleratorType (google-cloud-aiplatform 1.165), and the machines that have them; N1 takes the
# older ones as it is asked. A test compares the names with the package's.
ACCELERATORS: dict[str, tuple[str, ...]] = {
    "NVIDIA_TESLA_P4": ("n1-",),
    "NVIDIA_TESLA_P100": ("n1-",),
    "NVIDIA_TESLA_V100": ("n1-",),
    "NVIDIA_TESLA_T4": ("n1-",),
    "NVIDIA_L4": ("g2-standard-",),
    "NVIDIA_TESLA_A100": ("a2-highgpu-", "a2-megagpu-"),
    "NVIDIA_A100_80GB": ("a2-ultragpu-",),
    "NVIDIA_H100_80GB": ("a3-highgpu-", "a3-edgegpu-"),
    "NVIDIA_H100_MEGA_80GB": ("a3-megagpu-",),
    "NVIDIA_H200_141GB": ("a3-ultragpu-",),
    "NVIDIA_B200": ("a4-highgpu-",),
    "NVIDIA_GB200": ("a4x-",),
    "NVIDIA_RTX_PRO_6000": ("g4-standard-",),
}
PROJECT = re.compile(r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]|\d+")
LOCATION = re.compile(r"[a-z]+-[a-z]+\d+")
NETWORK = re.compile(r"projects/[^/]+/global/networks/[^/]+")
ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")
LABEL = re.compile(r"[a-z][-_a-z0-9]{0,62}")
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")


def check_vertex(cluster: Cluster) -> None:
    """Raises ValueError, naming the keys."""
    check_absent(cluster)
    check_place(cluster)
    kind = cluster.gpu.accelerator
    if cluster.gpu.count:
        hint = did_you_mean(kind, list(ACCELERATORS))
        require(kind in ACCELERATORS, f"gpu.accelerator '{kind}': Vertex has other names; {hint}")
    check_job(cluster)
    check_variables(cluster.env)
    for name, value in cluster.labels.items():
        ok = LABEL.fullmatch(name) and LABEL_VALUE.fullmatch(value)
        require(bool(ok), f"labels.{name} '{value}': Google's labels are small letters, digits, '-' and '_'")


def check_not_vertex(cluster: Cluster) -> None:
    """Raises ValueError: a setting of Vertex' in the file of a Kubernetes."""
    for key, value in vars(cluster.vertex).items():
        require(value == getattr(Vertex, key), f"vertex.{key}: goes with kind: vertex, and this cluster is Kubernetes")
    require(cluster.training.as_ != "customjob", "training.as customjob: goes with kind: vertex; here it is trainjob")


def check_absent(cluster: Cluster) -> None:
    """Kubernetes' settings, which would have no effect."""
    own: list[tuple[str, Any, Any, str]] = [
        ("namespace", cluster.namespace, "", "a run is in vertex.project and vertex.location"),
        ("pull_policy", cluster.pull_policy, "", "Vertex pulls images its own way"),
        ("pull_secrets", cluster.pull_secrets, [], "give the service agent the right to read the registry"),
        ("shm", cluster.shm, "", "it cannot be set there"),
        ("volume", cluster.volume, Volume(), "Vertex mounts no claims; source, work_uri and registry_uri are buckets"),
        ("training.runtime", cluster.training.runtime, Training.runtime, "several nodes are a CustomJob there"),
        ("retries.window", cluster.retries.window, Retries.window, "it is Argo's; Vertex has none"),
    ]
    own += [
        (f"credentials.{name}", getattr(cluster.credentials, name), value, "a run's identity is service_account")
        for name, value in vars(Credentials()).items()
    ]
    own += [
        (f"{pool}.{key}", getattr(getattr(cluster, pool), key), getattr(empty, key), "Vertex has no pools of nodes")
        for pool, empty in (("cpu", CpuPool()), ("gpu", GpuPool()))
        for key in ("node_selector", "tolerations")
    ]
    for key, value, default, why in own:
        require(value == default, f"{key}: is a setting of Kubernetes, and kind is vertex: {why}; leave it out")
    for stage, resources in cluster.resources.items():
        for key in ("cpu", "memory"):
            require(
                not getattr(resources, key),
                f"resources.{stage}.{key}: Vertex chooses a machine by limits alone; give {key}_limit",
            )
    for stage in cluster.timeouts:
        require(
            stage == "train" and cluster.trains_in_customjob,
            f"timeouts.{stage}: Vertex has a time limit for a CustomJob alone (train, with training.as: customjob)",
        )
    require(
        cluster.training.as_ != "trainjob", "training.as trainjob: is Kubeflow Trainer's, and kind is vertex: customjob"
    )


def check_place(cluster: Cluster) -> None:
    vertex = cluster.vertex
    for key in ("project", "location", "pipeline_root"):
        require(bool(getattr(vertex, key)), f"vertex.{key}: is missing, and kind: vertex needs it")
    for key, form, example in (
        ("project", PROJECT, "my-project"),
        ("location", LOCATION, "europe-west4"),
        ("network", NETWORK, "projects/NUMBER/global/networks/NAME"),
    ):
        value = getattr(vertex, key)
        require(not value or form.fullmatch(value) is not None, f"vertex.{key} '{value}': expected {example}")
    root = vertex.pipeline_root
    require(
        re.fullmatch(r"gs://[^/]+(/.*)?", root) is not None,
        f"vertex.pipeline_root '{root}': expected gs://bucket/prefix, where Vertex keeps what stages hand on",
    )
    account = cluster.service_account
    require(
        not account or ACCOUNT.fullmatch(account) is not None,
        f"service_account '{account}': on Vertex it is one of Google's, must@my-project.iam.gserviceaccount.com",
    )
    require(bool(cluster.registry), "registry: is missing; Vertex pulls from one, LOCATION-docker.pkg.dev/PROJECT/NAME")
    board = cluster.tensorboard
    require(
        not board or board.partition("://")[0] in ("gs", "s3", "az", "abfs", "abfss"),
        f"tensorboard '{board}': must be a bucket's URI",
    )


def check_job(cluster: Cluster) -> None:
    """Of training as a CustomJob."""
    training, vertex, gpu = cluster.training, cluster.vertex, cluster.gpu
    if not cluster.trains_in_customjob:
        for key in ("machine", "disk_gb", "strategy"):
            require(
                getattr(vertex, key) == getattr(type(vertex), key),
                f"vertex.{key}: is of a CustomJob's nodes; set training.as: customjob, or training.nodes",
            )
        return
    require(
        training.as_ != "pod" or training.nodes == 1,
        f"training.as pod contradicts training.nodes {training.nodes}: several nodes are a CustomJob",
    )
    require(
        bool(vertex.machine), "vertex.machine: is missing; a CustomJob's nodes are of a type, such as a3-highgpu-8g"
    )
    require(
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", vertex.machine) is not None,
        f"vertex.machine '{vertex.machine}': is no machine type",
    )
    require(
        "train" not in cluster.resources,
        "resources.train contradicts training as a CustomJob: vertex.machine says what its nodes have",
    )
    require(vertex.disk_gb >= 100, f"vertex.disk_gb {vertex.disk_gb}: 100 or more; the image must fit")
    fitting = ACCELERATORS.get(gpu.accelerator, ()) if gpu.count else ()
    require(
        not fitting or vertex.machine.startswith(fitting),
        f"vertex.machine {vertex.machine} contradicts gpu.accelerator {gpu.accelerator}, "
        f"which is in {' and '.join(fitting)}*",
    )
    built_in = re.fullmatch(r"a\d+x?-\w+-(\d+)g(-\w+)?", vertex.machine)
    require(
        not gpu.count or built_in is None or int(built_in[1]) == gpu.count,
        f"gpu.count {gpu.count} contradicts vertex.machine {vertex.machine}, which has its GPUs built in",
    )
