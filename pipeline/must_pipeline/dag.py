"""The DAG: shard and classifier; then, if there are new images, train, evaluate, export and gate; then, if the model
passes, promote and serve.

A stage in several pods is a loop over its parts. Each part writes to the bucket, from which the next stage reads; the
loop returns nothing.
"""

from functools import partial
from typing import Any

from kfp import dsl

from must.config.defaults import list_parts
from must_components.champion import champion
from must_components.classifier import classifier
from must_components.evaluate import evaluate
from must_components.export import export
from must_components.gate import gate as gate_stage
from must_components.inputs import inputs
from must_components.predict import predict
from must_components.promote import promote
from must_components.serve import serve as serve_stage
from must_components.shard import shard, shard_part
from must_components.summary import close, summary
from must_components.train import train
from must_pipeline import DESCRIPTION
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.nodes import encode_nodes, encode_server
from must_pipeline.cluster.placement import configure_task


def make_pipeline(cluster: Cluster) -> Any:
    """The pipeline for a cluster; must_pipeline/stages.py has a row for each of its tasks."""
    configure = partial(configure_task, cluster=cluster)
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # used by `submit --again` and by the run's notes

    @dsl.pipeline(name="must", description=DESCRIPTION)
    def must_pipeline(
        source: str,
        classes: str,
        work_uri: str,
        registry_uri: str = "",
        model_name: str = "model",
        model: str = "ViT-B-16/datacomp_xl_s13b_b90k",
        pretrained: str = "",
        test_source: str = "",
        labels: str = "none",
        split: str = "train=1",
        shard_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
        evaluate_split: str = "",
        preset: str = "",
        epochs: int = 0,
        settings: dict = {},  # noqa: B006
        answers: str = "",
        precision: str = "fp32",
        embeddings: bool = False,
        gate: str = "auto",
        gate_settings: dict = {},  # noqa: B006
        append: bool = False,
        only_new: bool = False,
        serve: str = "none",
    ):
        """Images and class names in, an adapted, evaluated and promoted ONNX model out.

        Args:
            source: folder or bucket prefix of unlabeled images, or a manifest.
            classes: YAML file with class names and prompt templates, or imagenet.
            work_uri: where shards and checkpoints go: gs://bucket/prefix or a path that all stages see.
            registry_uri: where promoted models live; work_uri/registry if empty.
            model_name: the model's name in the registry: small letters, digits and -.
            model: open_clip model name with its pretrained tag, such as ViT-B-16/openai; or a model folder.
            pretrained: the tag, if `model` has none, or a checkpoint file; nothing for a model folder.
            test_source: labelled images for reporting, which become the split 'test'.
            labels: where labels are: folder, csv or none.
            split: shares of `source` by split, such as train=0.9,test=0.1.
            shard_settings: other parameters of `must shard` by name, such as {"max_rejected": 0.05, "workers": 4}.
            evaluate_split: the split to evaluate on; empty: test, or train if there is no test.
            preset: empty or auto: settings from the data's size and the model; else the published ones of a data set,
                such as imagenet.
            epochs: passes over the images; 0 leaves it to settings and preset.
            settings: parameters of `must train` by name, such as {"lr": 2e-5}; they win over the preset.
            answers: answers.jsonl of `must review` about these images, which correct labels and teach the model;
                read again by each run of a schedule.
            precision: of the ONNX model: fp32 or int8.
            embeddings: the ONNX model gives images' embeddings too.
            gate: what a model must pass to be promoted: auto, labels if there are enough, else answers, else that it
                did not collapse; labelled, its gain over the champion on evaluate_split; label-free; or none.
            gate_settings: parameters of `must gate` by name, such as {"min_gain": 0.01}.
            append: add the source's new images to the shards that are there.
            only_new: end early when nothing is new since a model was last promoted or stopped.
            serve: after a promotion, write a KServe InferenceService whose server follows the registry's LATEST; apply:
                write and apply it; or none.
        """
        run = {"work_uri": work_uri, "run_id": run_id}
        summary_task = summary(**run)
        configure(summary_task, "summary")
        with dsl.ExitHandler(summary_task, name="stages"):
            names = {**run, "classes": classes, "model": model, "pretrained": pretrained}
            recipe, server = {"preset": preset, "settings": settings, "epochs": epochs}, encode_server(cluster)
            inputs_task = inputs(
                labels=labels, split=split, shard_settings=shard_settings, precision=precision, gate=gate,
                gate_settings=gate_settings, model_name=model_name, serve=serve,
                registry_uri=registry_uri, predict_uri=cluster.predict.uri, predict_pods=cluster.predict.pods,
                tensorboard_uri=cluster.tensorboard, answers=answers, server=server,
                runtime=cluster.training.runtime if cluster.trains_in_trainjob else "", **names, **recipe,
            )  # fmt: skip
            configure(inputs_task, "inputs")
            classifier_task = classifier(fingerprint=inputs_task.output, **names)
            configure(classifier_task, "classifier")
            images = {
                "source": source, "test_source": test_source, "labels": labels, "split": split, "append": append,
                "settings": shard_settings, **run,
            }  # fmt: skip
            if cluster.shard.pods > 1:
                with dsl.ParallelFor(list_parts(cluster.shard.pods), name="shard parts") as part:
                    last_task = shard_part(part=part, **images)
                    configure(last_task, "shard", title="shard part").after(inputs_task)
            else:
                last_task = inputs_task
            shard_task = shard(**images)
            configure(shard_task, "shard").after(last_task)
            index_sha256, weights = shard_task.outputs["Output"], classifier_task.outputs["weights"]
            registry = {"registry_uri": registry_uri, "model_name": model_name}
            champion_task = champion(
                index_sha256=index_sha256, classifier=weights, only_new=only_new, gate=gate,
                evaluate_split=evaluate_split, answers=answers, **run, **registry, **recipe,
            )  # fmt: skip
            configure(champion_task, "champion")
            shards = {**run, "index_sha256": index_sha256}
            with dsl.If(champion_task.outputs["Output"] == "train", name="something new"):
                start = {**recipe, "answers": answers, "classifier": weights}
                bundle = add_training(cluster, {**shards, **start}, model_name)
                judged = add_decision(
                    cluster, bundle, weights, champion_task, shards, registry, gate=gate, gate_settings=gate_settings
                )
                export_task = export(
                    bundle=bundle, details=judged["details"], precision=precision, embeddings=embeddings, **shards
                )
                configure(export_task, "export")
                with dsl.If(judged["action"] == "promote", name="passed the gate"):
                    promote_task = promote(
                        bundle=bundle, onnx=export_task.outputs["onnx"], details=judged["details"],
                        decision=judged["decision"], key=champion_task.outputs["key"],
                        champion=champion_task.outputs["version"], **run, **registry,
                    )  # fmt: skip
                    configure(promote_task, "promote")
                    add_predictions(cluster, export_task.outputs["onnx"], promote_task.outputs["promoted"], shards)
                    with dsl.If(serve != "none", name="served"):
                        serve_task = serve_stage(
                            version=promote_task.outputs["Output"], server=server, how=serve, **run, **registry
                        )
                        configure(serve_task, "serve")
                    with dsl.Else(name="not served"):
                        configure(close(why="serve is none: no server is written"), "close", title="not served")
                with dsl.Else(name="not promoted"):
                    configure(
                        close(why="the gate promotes nothing: the champion stays"), "close", title="champion stays"
                    )
            with dsl.Else(name="nothing new"):
                configure(close(why="nothing is new: nothing is trained"), "close", title="nothing new")

    return must_pipeline


def add_training(cluster: Cluster, inputs: dict[str, Any], model_name: Any) -> Any:
    """The task train, in its own pod or as a TrainJob; returns the bundle."""
    inputs = {**inputs, "tensorboard_uri": cluster.tensorboard}
    if cluster.trains_in_trainjob:
        task = train(nodes=encode_nodes(cluster), model_name=model_name, **inputs)
    else:
        task = train(processes=cluster.training.processes, **inputs)
    return configure_task(task, "train", cluster=cluster).outputs["bundle"]


def add_decision(
    cluster: Cluster, bundle: Any, weights: Any, champion_task: Any, shards: dict[str, Any], registry: dict[str, Any],
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """The tasks evaluate and gate; returns the gate's action and decision, and the evaluation's details."""
    champion_outputs = champion_task.outputs
    evaluate_task = evaluate(bundle=bundle, classifier=weights, split=champion_outputs["split"], **shards)
    configure_task(evaluate_task, "evaluate", cluster=cluster)
    details, run = evaluate_task.outputs["details"], {name: shards[name] for name in ("work_uri", "run_id")}
    gate_task = gate_stage(
        bundle=bundle, details=details, key=champion_outputs["key"], champion=champion_outputs["version"],
        champion_uri=champion_outputs["bundle_uri"], split=champion_outputs["split"], **settings, **run, **registry,
    )  # fmt: skip
    configure_task(gate_task, "gate", cluster=cluster)
    return {"action": gate_task.outputs["Output"], "decision": gate_task.outputs["decision"], "details": details}


def add_predictions(cluster: Cluster, onnx: Any, promoted: Any, shards: dict[str, Any]) -> None:
    """The tasks predict, if cluster.yaml has pods for them. The version is passed as an artifact: in a loop, kfp 2.17's
    local runner replaces every parameter that comes from a task outside the loop by the loop's item."""
    if not cluster.predict.pods:
        return
    with dsl.ParallelFor(list_parts(cluster.predict.pods), name="predict parts") as part:
        task = predict(
            part=part, onnx=onnx, promoted=promoted, predict_uri=cluster.predict.uri,
            settings=cluster.predict.settings, **shards,
        )  # fmt: skip
        configure_task(task, "predict", cluster=cluster, title="predict part")
