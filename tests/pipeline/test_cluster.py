"""cluster.yaml: what it says arrives in the compiled pipeline; what makes no sense is refused by name."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from must.table import PODS
from must_pipeline.cluster import ClusterConfig, load_cluster
from must_pipeline.placement import encode_nodes
from tests.common import one_line
from tests.pipeline.compiled import CLUSTER, OF_LABELLING, Compiled, compile_apart, compiled_for

CLUSTERS = Path(CLUSTER).with_name("clusters")
RESOURCES = ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")
DAY = 86_400


@cache
def example(name):
    return Compiled(compiled_for(CLUSTERS / f"{name}.yaml"))


@pytest.mark.parametrize(
    "stage, image, resources, gpus, shm, limit, seconds",  # time limits: the stage's own, and Kubernetes'
    [
        ("gke inputs", "must-torch", ("500m", None, "1Gi", "8Gi"), 0, "", None, 0),  # not in the file
        ("gke shard", "must-shard", ("14", None, "24Gi", "32Gi"), 0, "", "43200", 44_100),
        ("gke classifier", "must-torch", ("4", None, "8Gi", None), 0, "", None, 0),
        # A launcher. Each of its tries may take the TrainJob's time, with pauses of up to an hour in between.
        ("gke train", "must-shard", ("500m", None, "1Gi", "16Gi"), 0, "", None,
         11 * (2 * DAY + 300) + 60 * (1 + 2 + 4 + 8 + 16 + 32) + 4 * 3_600),
        ("gke evaluate", "must-torch", ("14", None, "24Gi", "48Gi"), 0, "24Gi", "14400", 15_300),
        ("eks train", "must-train", ("90", "95", "900Gi", "1000Gi"), 8, "64Gi", "259200", 3 * DAY + 900),
        ("eks evaluate", "must-train", ("40", None, "200Gi", "400Gi"), 8, "64Gi", None, 0),
        ("eks export", "must-torch", ("500m", None, "1Gi", "96Gi"), 0, "64Gi", None, 0),  # shm counts against the limit
        # Kueue may let its TrainJob wait for as long as it takes.
        ("openshift train", "must-shard", ("500m", None, "1Gi", "16Gi"), 0, "", None, 0),
        ("openshift shard", "must-shard", ("8", "8", "16Gi", "16Gi"), 0, "", "21600", 22_500),
    ],
)  # fmt: skip
def test_image_resources_gpus_and_time_limits(stage, image, resources, gpus, shm, limit, seconds):
    name, stage = stage.split()
    cluster, found = load_cluster(CLUSTERS / f"{name}.yaml"), example(name)
    settings, container = found.platform[f"exec-{stage}"], found.container(stage)
    digest = cluster.digests.get(image)
    assert container["image"] == f"{cluster.registry}/{image}" + (f"@{digest}" if digest else f":{cluster.tag}")
    assert tuple(container["resources"].get(f"resource{kind}") for kind in RESOURCES) == resources
    accelerator = container["resources"].get("accelerator", {})
    expected = ("nvidia.com/gpu", str(gpus)) if gpus else (None, None)
    assert (accelerator.get("resourceType"), accelerator.get("resourceCount")) == expected
    mount = {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": shm, "volumeName": "shm"}
    assert settings.get("emptyDirMounts", []) == ([mount] if shm else [])
    assert found.environment(stage).get("MUST_TIME_LIMIT") == limit
    assert int(settings.get("activeDeadlineSeconds", 0)) == seconds
    pool = cluster.gpu if gpus else cluster.cpu
    assert settings["nodeSelector"]["labels"] == pool.node_selector
    tolerations = [{k: v for k, v in one.items() if v} for one in settings.get("tolerations", [])]
    assert tolerations == [{k: v for k, v in vars(one).items() if v} for one in pool.tolerations]


@pytest.mark.parametrize("name", ["gke", "eks", "openshift"])
def test_what_all_pods_of_a_cluster_have(name):
    cluster, found = load_cluster(CLUSTERS / f"{name}.yaml"), example(name)
    retries, volume = cluster.retries, cluster.volume
    for stage in PODS.keys() - OF_LABELLING:  # of the second pipeline, by the same function
        settings = found.platform[f"exec-{stage}"]
        assert settings.get("podMetadata", {}).get("labels", {}) == cluster.labels
        assert [one["secretName"] for one in settings.get("imagePullSecret", [])] == cluster.pull_secrets
        assert settings.get("imagePullPolicy", "") == cluster.pull_policy
        mounts = settings.get("pvcMount", [])
        claims = [(one["pvcNameParameter"]["runtimeValue"]["constant"], one["mountPath"]) for one in mounts]
        assert claims == ([(volume.claim, volume.mount)] if volume.claim else [])
        assert found.environment(stage).items() >= cluster.env.items()
        policy = found.tasks[stage].get("retryPolicy")
        if stage == "summary":
            assert policy is None
            continue
        assert policy == {
            "maxRetryCount": retries.count, "backoffFactor": int(retries.factor),  # Argo parses an int
            "backoffDuration": f"{retries.backoff}s", "backoffMaxDuration": f"{retries.window}s",
        }  # fmt: skip
        own_tries = f"{retries.count},{retries.backoff},{retries.factor}"
        assert found.environment(stage)["MUST_RETRIES"] == own_tries
    # What comes of these parameters: tests/components/test_train_job.py.
    if cluster.trains_in_trainjob:
        assert found.constant("train", "nodes") == encode_nodes(cluster)
    else:
        assert found.constant("train", "processes") == cluster.training.processes


def test_one_node_may_be_a_trainjob_and_a_key_file_a_secret(tmp_path):
    more = "timeouts: {train: 3600}, credentials: {kind: secret, secret: gcs}"
    (tmp_path / "cluster.yaml").write_text(f"{{gpu: {{count: 1}}, training: {{as: trainjob}}, {more}}}")
    compile_apart(load_cluster(tmp_path / "cluster.yaml"), tmp_path / "one.yaml")
    found = Compiled(tmp_path / "one.yaml")
    nodes = found.constant("train", "nodes")
    assert (nodes["nodes"], nodes["gpus"], nodes["deadline"]) == (1, 1, 3600)
    assert nodes["pod"]["volumes"] == [{"name": "key", "secret": {"secretName": "gcs"}}]
    assert found.container("train")["image"].startswith("must-shard:")
    assert "accelerator" not in found.container("train").get("resources", {})
    assert found.platform["exec-train"]["activeDeadlineSeconds"] == str(4 * 3900 + 60 + 120 + 240)
    (secret,) = found.platform["exec-shard"]["secretAsVolume"]
    key = found.environment("shard")["GOOGLE_APPLICATION_CREDENTIALS"]
    assert secret["secretName"] == "gcs" and key == f"{secret['mountPath']}/key.json"


def test_several_pods_are_a_loop_over_parts_and_nothing_is_collected_from_it():
    found = example("gke")
    ((name, loop),) = [(name, task) for name, task in found.tasks.items() if "parameterIterator" in task]
    dag = found.spec["components"][loop["componentRef"]["name"]]["dag"]
    assert "outputs" not in dag and list(dag["tasks"]) == ["shard-part"]
    assert found.tasks["shard-part"]["retryPolicy"]["maxRetryCount"] == 10
    assert yaml.safe_load(loop["parameterIterator"]["items"]["raw"]) == [f"{number}/8" for number in range(1, 9)]
    assert found.tasks["shard"]["dependentTasks"] == [name]
    assert found.platform["exec-shard-part"] == found.platform["exec-shard"]


def test_the_examples_cover_every_setting():
    """A setting that no example uses is one whose way into the compiled pipeline no test above has seen."""
    used = set()
    for file in CLUSTERS.glob("*.yaml"):
        cluster, default = load_cluster(file), ClusterConfig()
        used |= {name for name in vars(default) if getattr(cluster, name) != getattr(default, name)}
    assert used == set(vars(ClusterConfig())) - {"tag"}  # the examples' tag is the default's: this version


def test_the_documented_file_holds_every_key_with_its_default():
    assert load_cluster(CLUSTER) == ClusterConfig()

    def keys(value, default):
        if hasattr(default, "__dataclass_fields__"):
            fields = {name.rstrip("_"): item for name, item in vars(default).items()}  # `as` is no name in Python
            assert set(value) == set(fields)
            for name, item in value.items():
                keys(item, fields[name])

    keys(yaml.safe_load(CLUSTER.read_text()), ClusterConfig())


@pytest.mark.parametrize(
    "text, message",
    [
        ("cpu: {tolerations: [{kee: a}]}", "cpu.tolerations[0].kee: unknown key; did you mean 'key'?"),
        ("resources: {trian: {cpu: 1}}", "resources.trian: unknown; did you mean 'train'?"),
        ("zzz: 1", "zzz: unknown key; known: registry"),
        ("labels: {a: true}", "labels.a: expected text, got 'True'"),
        ("tag: latest", "tag 'latest': may name another image during a run"),
        ("registry: https://ghcr.io/x", "without https://"),
        ("credentials: {kind: secret}", "credentials: kind secret and the name of the Secret go together"),
        ("volume: {claim: x, mount: '/a:b'}", "volume.mount '/a:b': expected a folder"),
        ("volume: {claim: x}", "volume: claim and mount go together"),
        ("volume: {claim: x, mount: /tmp/data}", "volume.mount '/tmp/data': expected a folder such as /data"),
        ("env: {HTTPS_PROXY: 'http://me:secret@proxy'}", "env 'HTTPS_PROXY': would be in the compiled file"),
        ("volume: {claim: x, mount: /dev/shm}", "volume.mount '/dev/shm': expected a folder such as /data"),
        ("gpu: {count: 1, stages: [trian]}", "gpu.stages 'trian': unknown; did you mean 'train'?"),
        ("gpu: {count: 1, stages: [shard]}", "gpu.stages 'shard': does not use a GPU; these do: classifier, train"),
        ("resources: {train: {memory: lots}}", "resources.train.memory 'lots': expected an amount of memory"),
        ("resources: {train: {cpu: many}}", "resources.train.cpu 'many': expected 4, 0.5 or 500m"),
        ("timeouts: {train: -5}", "timeouts.train -5: seconds above 0"),
        ("{retries: {window: 3600}, timeouts: {train: 7200}}", "retries.window 3600 contradicts 7200 s in timeouts"),
        ("retries: {factor: 0}", "retries.factor 0: must be at least 1"),
        ("training: {nodes: 2, as: pod}", "training.as pod contradicts training.nodes 2"),
        ("env: {MUST_RETRIES: x}", "env 'MUST_RETRIES': is no name of an environment variable, or begins with MUST_"),
        ("env: {A=B: '1'}", "env 'A=B': is no name of an environment variable"),
        ("credentials: {variable: 'a b'}", "credentials.variable 'a b': is no name of an environment variable"),
        ("env: {AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI}", "env 'AWS_SECRET_ACCESS_KEY': would be in the compiled file"),
        (
            "env: {AZURE_STORAGE_CONNECTION_STRING: 'AccountName=a'}",
            "CONNECTION_STRING': would be in the compiled file",
        ),
        ("registry: Reg.io/X", "registry 'Reg.io/X': is no registry, such as ghcr.io/team/must, in small letters"),
        (
            "volume: {claim: x, mount: /opt/must}",
            "volume.mount '/opt/must': expected a folder such as /data, and none of",
        ),
        ("volume: {claim: x, mount: /var/run/a}", "volume.mount '/var/run/a': expected a folder such as /data"),
        ("training: {processes: all}", "training.processes 'all': a number of processes a node, or auto"),
        ("{gpu: {count: 4}, training: {processes: 8}}", "training.processes 8 contradicts gpu.count 4"),
        ("{gpu: {count: 1, stages: [evaluate]}, training: {nodes: 2}}", "contradicts training.nodes"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "cluster.yaml").write_text(text)
    with one_line(re.escape(message)):
        load_cluster(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "env: {AWS_WEB_IDENTITY_TOKEN_FILE: /var/run/token, HF_HUB_DISABLE_IMPLICIT_TOKEN: '1'}",
        "env: {AWS_ACCESS_KEY_ID: AKIAEXAMPLE, AWS_CONTAINER_AUTHORIZATION_TOKEN: /var/run/secrets/token}",
        "volume: {claim: x, mount: /var/data}",
        "volume: {claim: x, mount: /development}",
        "registry: localhost:5000/a_b/c-d",
    ],
)
def test_what_only_looks_wrong_is_taken(tmp_path, text):
    (tmp_path / "cluster.yaml").write_text(text)
    load_cluster(tmp_path / "cluster.yaml")


def test_compile_warns_of_images_without_a_registry_and_writes_one_file(tmp_path):
    (tmp_path / "c.yaml").write_text("gpu: {count: 1}")
    command = [sys.executable, "-m", "must_pipeline", "compile", "--cluster", "c.yaml", "--output", "o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("must-pipeline compile: warning: c.yaml: `registry` is empty: the images' names")
    assert done.returncode == 0 and {file.name for file in tmp_path.iterdir()} == {"c.yaml", "o"}  # no second pipeline
