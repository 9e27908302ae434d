"""The DAG: shard and classifier; then, if there is anything new, train, evaluate, export, gate and promote."""

from functools import partial
from typing import Any

from kfp import dsl

from components.champion import champion
from components.classifier import classifier
from components.evaluate import evaluate
from components.export import export
from components.gate import gate as gate_stage
from components.inputs import inputs
from components.promote import promote
from components.shard import shard
from components.summary import summary
from components.train import train
from components.train_job.component import train_job
from pipeline.cluster.config import Cluster
from pipeline.cluster.nodes import nodes_of
from pipeline.cluster.placement import place


def make_pipeline(cluster: Cluster) -> Any:
    """The pipeline for a cluster; pipeline/stages.py has a row for each of its tasks."""

    put = partial(place, cluster=cluster)

    @dsl.pipeline(
        name="must",
        description="Adapts CLIP to unlabeled images: masked unsupervised self-training (arXiv 2206.02967).",
    )
    def must_pipeline(
        source: str,
        classes: str,
        work_uri: str,
        registry_uri: str = "",
        model_name: str = "model",
        model: str = "ViT-B-16-quickgelu",
        pretrained: str = "openai",
        test_source: str = "",
        labels: str = "none",
        split: str = "train=1",
        shard_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
        evaluate_split: str = "test",
        preset: str = "",
        epochs: int = 0,
        settings: dict = {},  # noqa: B006
        precision: str = "fp32",
        gate: str = "label-free",
        gate_settings: dict = {},  # noqa: B006
        append: bool = False,
        warm_start: bool = False,
        only_new: bool = False,
    ):
        """Images and class names in, an adapted, evaluated and promoted ONNX model out.

        Args:
            source: folder or bucket prefix of unlabeled images, or a manifest.
            classes: YAML file with class names and prompt templates, or imagenet.
            work_uri: where shards and checkpoints go: gs://bucket/prefix or a path that all stages see.
            registry_uri: where promoted models live; work_uri/registry if empty.
            model_name: the model's name in the registry: small letters, digits and -.
            model: open_clip model name, or a model folder.
            pretrained: open_clip pretrained tag, or a checkpoint file; nothing for a model folder.
            test_source: labelled images for reporting, which become the split 'test'.
            labels: where labels stand: folder, csv or none.
            split: shares of `source` by split, such as train=0.9,test=0.1.
            shard_settings: other parameters of `must shard` by name, such as {"max_rejected": 0.05, "workers": 4}.
            evaluate_split: the split to evaluate on.
            preset: published settings of a data set, such as imagenet.
            epochs: passes over the images; 0 leaves it to settings and preset.
            settings: parameters of `must train` by name, such as {"lr": 2e-5}; they win over the preset.
            precision: of the ONNX model: fp32, fp16 or int8.
            gate: what a model must pass to be promoted: label-free signals against zero-shot; labelled, the interval of
                its gain over the champion on evaluate_split; or none.
            gate_settings: parameters of `must gate` by name, such as {"min_gain": 0.01}.
            append: add the source's new images to the shards that are there.
            warm_start: start from the champion instead of the zero-shot model.
            only_new: end early when nothing is new since a model was last promoted or stopped.
        """
        here = {"work_uri": work_uri, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        page = summary(**here)
        put(page, "summary")
        with dsl.ExitHandler(page, name="stages"):
            names = {**here, "classes": classes, "model": model, "pretrained": pretrained}
            recipe = {"preset": preset, "settings": settings, "epochs": epochs}
            looked = inputs(
                labels=labels, split=split, shard_settings=shard_settings, precision=precision, gate=gate,
                gate_settings=gate_settings, model_name=model_name, **names, **recipe,
            )  # fmt: skip
            put(looked, "inputs")
            text = classifier(fingerprint=looked.output, **names)
            put(text, "classifier")
            sharded = shard(
                source=source, test_source=test_source, labels=labels, split=split, append=append,
                settings=shard_settings, **here,
            )  # fmt: skip
            put(sharded, "shard").after(looked)
            index_sha256, weights = sharded.outputs["Output"], text.outputs["weights"]
            registry = {"registry_uri": registry_uri, "model_name": model_name}
            best = champion(
                index_sha256=index_sha256, classifier=weights, warm_start=warm_start, only_new=only_new, **here,
                **registry, **recipe,
            )  # fmt: skip
            put(best, "champion")
            with dsl.If(best.outputs["Output"] == "train", name="something new"):
                material = {**here, "index_sha256": index_sha256}
                start = {**material, "classifier": weights, "init": best.outputs["init"], **recipe}
                if cluster.trains_in_trainjob:
                    trained = train_job(nodes=nodes_of(cluster), tensorboard_uri=cluster.tensorboard, **start)
                else:
                    trained = train(processes=cluster.training.processes, tensorboard_uri=cluster.tensorboard, **start)
                put(trained, "train")
                bundle = trained.outputs["bundle"]
                evaluated = evaluate(bundle=bundle, classifier=weights, split=evaluate_split, **material)
                put(evaluated, "evaluate")
                details = evaluated.outputs["details"]
                decided = gate_stage(
                    bundle=bundle, details=details, key=best.outputs["key"], gate=gate,
                    champion=best.outputs["version"], champion_uri=best.outputs["bundle_uri"],
                    gate_settings=gate_settings, split=evaluate_split, **here, **registry,
                )  # fmt: skip
                put(decided, "gate")
                exported = export(bundle=bundle, details=details, precision=precision, **material)
                put(exported, "export")
                with dsl.If(decided.outputs["Output"] == "promote", name="passed the gate"):
                    promoted = promote(
                        bundle=bundle, onnx=exported.outputs["onnx"], details=details,
                        decision=decided.outputs["decision"], key=best.outputs["key"], champion=best.outputs["version"],
                        **here, **registry,
                    )  # fmt: skip
                    put(promoted, "promote")

    return must_pipeline
