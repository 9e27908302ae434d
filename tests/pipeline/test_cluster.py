"""cluster.yaml: what it says arrives in the compiled pipeline; what makes no sense is refused by name."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from must_pipeline.cluster.config import Cluster, Resources
from must_pipeline.cluster.nodes import encode_nodes, encode_server, spot_warning
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER, documents
from must_pipeline.stages import STAGES
from tests.pipeline.compiled import compile_apart, compiled_for

CLUSTERS = Path(CLUSTER).with_name("clusters")


class Compiled:
    """A compiled pipeline: the containers, tasks and Kubernetes settings of a stage."""

    def __init__(self, name, folder, cluster=None):
        self.cluster = cluster or load_cluster(CLUSTERS / f"{name}.yaml")
        if cluster is None:
            file = compiled_for(CLUSTERS / f"{name}.yaml")
        else:
            file = folder / f"{name}.yaml"
            compile_apart(cluster, file)
        self.spec, platform = documents(file.read_text())
        self.platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.tasks = {}
        for dag in [self.spec["root"], *self.spec["components"].values()]:
            self.tasks |= dag.get("dag", {}).get("tasks", {})

    @property
    def stages(self):
        return [stage for stage in STAGES if self.cluster.predict.pods or not STAGES[stage].optional]

    def container(self, stage):
        return self.spec["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]

    def environment(self, stage):
        return {one["name"]: one["value"] for one in self.container(stage).get("env", [])}

    def kubernetes(self, stage):
        return self.platform[f"exec-{stage}"]

    def nodes(self):
        """What the launcher gets for the TrainJob's nodes."""
        return self.tasks["train"]["inputs"]["parameters"]["nodes"]["runtimeValue"]["constant"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """example(name): an example of ours, compiled once."""
    return cache(lambda name: Compiled(name, tmp_path_factory.mktemp("compiled")))


@pytest.fixture(params=["gke", "eks", "openshift"])
def compiled(request, example):
    return example(request.param)


def test_every_stage_runs_the_registrys_image(compiled):
    cluster = compiled.cluster
    for stage in compiled.stages:
        image = compiled.container(stage)["image"]
        assert image.startswith(cluster.registry + "/must-")
        assert ("@sha256:" in image) is bool(cluster.digests) and (cluster.digests or image.endswith(f":{cluster.tag}"))
    kinds = {stage: compiled.container(stage)["image"].split("/must-")[1][:5] for stage in compiled.stages}
    assert kinds["shard"] == "shard" and kinds["classifier"] == "torch"
    assert kinds["train"] == ("shard" if cluster.trains_in_trainjob else "train")
    assert kinds["evaluate"] == ("train" if "evaluate" in cluster.gpu.stages else "torch")


def test_pools_labels_secrets_and_volumes_are_in_the_platform_document(compiled):
    cluster = compiled.cluster
    for stage in compiled.stages:
        settings = compiled.kubernetes(stage)
        on_gpu = cluster.uses_gpu(stage) and not (stage == "train" and cluster.trains_in_trainjob)
        pool = cluster.gpu if on_gpu else cluster.cpu
        assert settings["nodeSelector"]["labels"] == pool.node_selector
        found = [{k: v for k, v in t.items() if v} for t in settings.get("tolerations", [])]
        assert found == [{k: v for k, v in vars(t).items() if v} for t in pool.tolerations]
        assert settings.get("podMetadata", {}).get("labels", {}) == cluster.labels
        assert [s["secretName"] for s in settings.get("imagePullSecret", [])] == cluster.pull_secrets
        assert settings.get("imagePullPolicy", "") == cluster.pull_policy
        mounts = settings.get("pvcMount", [])
        claims = [(one["pvcNameParameter"]["runtimeValue"]["constant"], one["mountPath"]) for one in mounts]
        assert claims == ([(cluster.volume.claim, cluster.volume.mount)] if cluster.volume.claim else [])
        secrets = [s["secretName"] for s in settings.get("secretAsVolume", [])]
        assert secrets == ([cluster.credentials.secret] if cluster.credentials.secret else [])
        assert ("GOOGLE_APPLICATION_CREDENTIALS" in compiled.environment(stage)) is bool(secrets)


def test_shared_memory_limits_and_retries(compiled):
    cluster = compiled.cluster
    for stage in compiled.stages:
        settings = compiled.kubernetes(stage)
        launcher = stage == "train" and cluster.trains_in_trainjob
        shm = [m for m in settings.get("emptyDirMounts", []) if m["mountPath"] == "/dev/shm"]
        expected = [{"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": cluster.shm, "volumeName": "shm"}]
        assert shm == (expected if STAGES[stage].loaders and not launcher else [])
        seconds = cluster.timeouts.get(stage, 0)
        limit = str(seconds) if seconds and not launcher else None
        assert compiled.environment(stage).get("MUST_TIME_LIMIT") == limit
        seconds += 900 * bool(seconds)
        if launcher:  # each of its tries may take the TrainJob's time, with the pauses between them
            seconds = (seconds - 900 + 300) * (cluster.retries.count + 1)
            seconds += sum(min(3600, cluster.retries.backoff * 2**number) for number in range(cluster.retries.count))
        if launcher and "kueue.x-k8s.io/queue-name" in cluster.labels:  # the job may wait there for as long as it takes
            seconds = 0
        assert int(settings.get("activeDeadlineSeconds", 0)) == seconds
        policy, retries = compiled.tasks[stage].get("retryPolicy"), cluster.retries
        if stage == "summary":
            assert policy is None
            continue
        assert policy == {
            "maxRetryCount": retries.count, "backoffFactor": int(retries.factor),  # Argo parses an int
            "backoffDuration": f"{retries.backoff}s", "backoffMaxDuration": f"{retries.window}s",
        }  # fmt: skip
        own_tries = f"{retries.count},{retries.backoff},{retries.factor}"
        assert compiled.environment(stage)["MUST_RETRIES"] == own_tries


def test_requests_limits_and_accelerators(compiled):
    cluster = compiled.cluster
    for stage in compiled.stages:
        resources = compiled.container(stage).get("resources", {})
        launcher = stage == "train" and cluster.trains_in_trainjob
        given = Resources() if launcher else cluster.resources.get(stage, Resources())
        asked = {"cpu": "500m", "memory": "1Gi"}  # unless there is a limit, which is a request, too
        if not given.memory and not given.memory_limit:
            row = STAGES["promote" if launcher else stage]
            shm = int(cluster.shm.removesuffix("Gi")) if row.loaders else 0
            gpus = cluster.gpu.count if cluster.uses_gpu(stage) and not launcher else 1
            given = replace(given, memory="1Gi", memory_limit=f"{row.memory * gpus + shm}Gi")
        missing = [key for key in asked if not (getattr(given, key) or getattr(given, f"{key}_limit"))]
        wanted = replace(given, **{key: asked[key] for key in missing})
        names = {"CpuRequest": "cpu", "CpuLimit": "cpu_limit", "MemoryRequest": "memory", "MemoryLimit": "memory_limit"}
        found = {name: resources.get(f"resource{name}") for name in names}
        assert found == {name: getattr(wanted, key) or None for name, key in names.items()}
        accelerator = resources.get("accelerator")
        if cluster.uses_gpu(stage) and not launcher:
            assert accelerator["resourceType"] == cluster.gpu.accelerator
            assert accelerator["resourceCount"] == str(cluster.gpu.count)
        else:
            assert accelerator is None


def test_what_the_servers_pods_get_arrives_in_the_stage_that_applies_it(compiled):
    """What comes of it: tests/components/test_serving.py."""
    given = compiled.tasks["serve"]["inputs"]["parameters"]["server"]["runtimeValue"]["constant"]
    assert given == encode_server(compiled.cluster) and given["size"] == vars(compiled.cluster.server)


def test_training_on_one_node_or_several(compiled):
    """What comes of the parameter `nodes`: tests/components/test_train_job.py."""
    cluster = compiled.cluster
    parameters = compiled.tasks["train"]["inputs"]["parameters"]
    assert parameters["tensorboard_uri"]["runtimeValue"]["constant"] == cluster.tensorboard
    assert ("nodes" in parameters) is cluster.trains_in_trainjob
    if not cluster.trains_in_trainjob:
        assert parameters["processes"]["runtimeValue"]["constant"] == cluster.training.processes
    else:
        assert compiled.nodes() == encode_nodes(cluster) and compiled.nodes()["cpu"]


def test_one_node_may_be_a_trainjob(tmp_path):
    (tmp_path / "cluster.yaml").write_text("{gpu: {count: 1}, training: {as: trainjob}, timeouts: {train: 3600}}")
    found = Compiled("one", tmp_path, load_cluster(tmp_path / "cluster.yaml"))
    nodes = found.nodes()
    assert (nodes["nodes"], nodes["gpus"], nodes["deadline"]) == (1, 1, 3600)
    assert found.container("train")["image"].startswith("must-shard:")
    assert "accelerator" not in found.container("train").get("resources", {})
    assert found.kubernetes("train")["activeDeadlineSeconds"] == str(4 * 3900 + 60 + 120 + 240)


def test_several_pods_are_a_loop_over_parts_and_nothing_is_collected_from_it(example):
    found = example("gke")
    loops = {}
    for name, task in found.tasks.items():
        if "parameterIterator" in task:
            dag = found.spec["components"][task["componentRef"]["name"]]["dag"]
            (inside,) = dag["tasks"]
            assert "outputs" not in dag and found.tasks[inside]["retryPolicy"]["maxRetryCount"] == 10
            loops[inside] = name, yaml.safe_load(task["parameterIterator"]["items"]["raw"])
    assert loops["shard-part"][1] == [f"{number}/8" for number in range(1, 9)]
    assert loops["predict"][1] == ["1/4", "2/4", "3/4", "4/4"] and len(loops) == 2
    assert found.tasks["shard"]["dependentTasks"] == [loops["shard-part"][0]]
    assert found.platform["exec-shard-part"] == found.platform["exec-shard"]
    assert found.container("predict")["resources"]["resourceCpuRequest"] == "14"


def test_the_examples_cover_every_setting():
    """A setting that no example uses is one whose way into the compiled pipeline no test above has seen."""
    used = set()
    for file in CLUSTERS.glob("*.yaml"):
        cluster, default = load_cluster(file), Cluster()
        used |= {name for name in vars(default) if getattr(cluster, name) != getattr(default, name)}
    assert used == set(vars(Cluster())) - {"tag"}  # the examples' tag is the default's: this version


def test_the_documented_file_holds_every_key_with_its_default():
    assert load_cluster(CLUSTER) == Cluster()

    def keys(value, default):
        if hasattr(default, "__dataclass_fields__"):
            fields = {name.rstrip("_"): item for name, item in vars(default).items()}  # `as` is no name in Python
            assert set(value) == set(fields)
            for name, item in value.items():
                keys(item, fields[name])

    keys(yaml.safe_load(CLUSTER.read_text()), Cluster())


@pytest.mark.parametrize(
    "text, message",
    [
        ("cpu: {tolerations: [{kee: a}]}", "cpu.tolerations[0].kee: unknown key; did you mean 'key'?"),
        ("resources: {trian: {cpu: 1}}", "resources.trian: unknown; did you mean 'train'?"),
        ("zzz: 1", "zzz: unknown key; known: registry"),
        ("gpu: 4", "gpu: expected 'name: value' lines, got '4'"),
        ("labels: {a: true}", "labels.a: expected text, got 'True'"),
        ("tag:", "tag: has no value"),
        ("pull_policy: Sometimes", "pull_policy must be one of"),
        ("tag: latest", "tag 'latest': may name another image during a run"),
        ("registry: https://ghcr.io/x", "without https://"),
        ("digests: {must-train: sha256:12}", "digests.must-train 'sha256:12': expected sha256: and 64 hex digits"),
        ("credentials: {kind: secret}", "credentials.kind secret needs credentials.secret"),
        ("credentials: {secret: gcs}", "credentials.secret contradicts credentials.kind none"),
        ("credentials: {kind: workload-identity}", "needs service_account"),
        ("namespace: Team_A", "namespace 'Team_A': is no Kubernetes name"),
        ("{volume: {claim: A_B, mount: /data}}", "volume.claim 'A_B': is no Kubernetes name"),
        ("labels: {'my team': x}", "labels.my team 'x': Kubernetes allows no such label"),
        ("cpu: {node_selector: {pool: 'a,b'}}", "cpu.node_selector.pool 'a,b': Kubernetes allows no such label"),
        ("gpu: {count: 1, accelerator: NVIDIA L4}", "gpu.accelerator 'NVIDIA L4': is no resource's name"),
        ("registry: my registry", "registry 'my registry': is no registry"),
        ("volume: {claim: x, mount: '/a:b'}", "volume.mount '/a:b': expected a folder"),
        ("volume: {claim: x, mount: /a/../b}", "volume.mount '/a/../b': expected a folder"),
        ("volume: {claim: x}", "volume: claim and mount go together"),
        ("volume: {claim: a.b, mount: /data}", "volume.claim 'a.b': Kubeflow makes a volume's name of it"),
        ("volume: {claim: x, mount: /dev/shm}", "volume.mount '/dev/shm': expected a folder such as /data"),
        ("tensorboard: /logs", "tensorboard '/logs': must be a bucket's URI or lie below volume.mount"),
        ("gpu: {node_selector: {a: b}}", "gpu.node_selector contradicts gpu.count 0"),
        ("gpu: {count: 1, stages: [trian]}", "gpu.stages 'trian': unknown; did you mean 'train'?"),
        ("gpu: {count: 1, stages: [shard]}", "gpu.stages 'shard': does not use a GPU; these do: classifier, train"),
        ("cpu: {tolerations: [{key: a, operator: Exists, value: b}]}", "operator Exists contradicts a value"),
        ("cpu: {tolerations: [{value: b}]}", "without a key the operator must be Exists"),
        ("resources: {train: {cpu: 4, cpu_limit: 9m}}", "resources.train.cpu 4 contradicts resources.train.cpu_limit"),
        ("resources: {train: {memory: 2Gi, memory_limit: 2G}}", "resources.train.memory 2Gi contradicts"),
        ("resources: {train: {memory: lots}}", "resources.train 'lots': expected an amount of memory"),
        ("resources: {train: {cpu: many}}", "resources.train.cpu 'many': expected 4, 0.5 or 500m"),
        ("{shm: 8Gi, resources: {train: {memory_limit: 8Gi}}}", "shm 8Gi contradicts resources.train.memory_limit"),
        ("{retries: {window: 3600}, timeouts: {train: 7200}}", "retries.window 3600 contradicts 7200 s in timeouts"),
        ("retries: {factor: 0}", "retries.factor 0: must be 1 or more"),
        ("timeouts: {train: 0}", "timeouts.train: seconds above 0"),
        ("training: {as_: pod}", "training.as_: unknown key; did you mean 'as'?"),
        ("training: {nodes: 2, as: pod}", "training.as pod contradicts training.nodes 2"),
        ("shard: {pods: 0}", "shard.pods must be from 1 to 500"),
        ("predict: {pods: 2}", "predict.pods needs predict.uri"),
        ("predict: {uri: gs://b/p}", "predict.uri contradicts predict.pods 0"),
        ("predict: {pods: 2, uri: /p}", "predict.uri '/p': must be a bucket's URI or lie below volume.mount"),
        ("predict: {pods: 1, uri: gs://b/p, settings: {part: 1/2}}", "predict.settings.part: is set by the pipeline"),
        ("predict: {pods: 1, uri: gs://b/p, settings: {abstain: 2}}", "predict.settings: --abstain must be from 0"),
        ("training: {nodes: 0}", "training.nodes must be at least 1"),
        ("training: {processes: all}", "training.processes 'all': a number of processes a node, or auto"),
        ("{gpu: {count: 4}, training: {processes: 8}}", "training.processes 8 contradicts gpu.count 4"),
        ("{gpu: {count: 1, stages: [evaluate]}, training: {nodes: 2}}", "contradicts training.nodes"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        load_cluster(tmp_path / "cluster.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pool",
    [
        {"node_selector": {"cloud.google.com/gke-spot": "true"}},
        {"node_selector": {"eks.amazonaws.com/capacityType": "SPOT"}},
        {"node_selector": {"karpenter.sh/capacity-type": "spot"}},
        {"tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"}]},
        {"tolerations": [{"key": "cloud.google.com/gke-preemptible", "operator": "Exists"}]},
    ],
)
def test_training_in_a_pod_on_spot_nodes_is_warned_of_and_a_trainjob_is_not(tmp_path, pool):
    def said(**more):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"gpu": {"count": 1, **pool}, **more}))
        return spot_warning(load_cluster(tmp_path / "cluster.yaml"))

    assert "Set retries.policy: Always (Pipelines 2.18) or training.as: trainjob" in said()
    assert not said(retries={"policy": "Always"})
    assert not said(training={"as": "trainjob"})
    assert not said(gpu={"count": 1, "node_selector": {"cloud.google.com/gke-spot": "false", "team": "spotlight"}})
    assert not said(gpu={"count": 0}, cpu={})


def test_compile_prints_the_warnings_and_compiles(tmp_path):
    (tmp_path / "c.yaml").write_text("gpu: {count: 1, node_selector: {cloud.google.com/gke-spot: 'true'}}")
    command = [sys.executable, "-m", "must_pipeline", "compile", "--cluster", "c.yaml", "--output", "o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    images, spot = done.stderr.splitlines()
    assert images.startswith("must-pipeline compile: warning: c.yaml: `registry` is empty: the images' names")
    assert spot.startswith("must-pipeline compile: warning: c.yaml: training runs in the stage's own pod on spot nodes")
    assert done.returncode == 0 and (tmp_path / "o").exists()
