"""The DAG: shard and classifier; then, if there are new images, train, evaluate, export, gate, and then promote and
serve, or ask people.

A stage in several pods is a loop over its parts. Each part writes to the bucket, from which the next stage reads; the
loop returns nothing.
"""

from functools import partial
from typing import Any

from kfp import dsl

from must.config.part import parts_of
from must_components.champion import champion
from must_components.classifier import classifier
from must_components.close import close
from must_components.evaluate import evaluate
from must_components.export import export
from must_components.gate import gate as gate_stage
from must_components.inputs import inputs
from must_components.predict import predict
from must_components.promote import promote
from must_components.review import review
from must_components.serve import serve as serve_stage
from must_components.shard import shard
from must_components.shard_part import shard_part
from must_components.summary import summary
from must_components.train import train
from must_components.train_job.component import train_job
from must_pipeline import DESCRIPTION
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.nodes import nodes_of, server_of
from must_pipeline.cluster.placement import configure_task
from must_pipeline.cluster.rules import predicts_embeddings


def make_pipeline(cluster: Cluster) -> Any:
    """The pipeline for a cluster; must_pipeline/stages.py has a row for each of its tasks."""

    configure = partial(configure_task, cluster=cluster)
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # used by `submit --again` and by the run's notes

    @dsl.pipeline(
        name="must",
        description=DESCRIPTION,
    )
    def must_pipeline(
        source: str,
        classes: str,
        work_uri: str,
        registry_uri: str = "",
        model_name: str = "model",
        model: str = "ViT-B-16",
        pretrained: str = "datacomp_xl_s13b_b90k",
        test_source: str = "",
        labels: str = "none",
        split: str = "train=1",
        shard_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
        evaluate_split: str = "test",
        preset: str = "",
        epochs: int = 0,
        settings: dict = {},  # noqa: B006
        precision: str = "fp32",
        embeddings: bool = False,
        gate: str = "label-free",
        gate_settings: dict = {},  # noqa: B006
        append: bool = False,
        only_new: bool = False,
        register: str = "none",
        serve: str = "none",
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
            labels: where labels are: folder, csv or none.
            split: shares of `source` by split, such as train=0.9,test=0.1.
            shard_settings: other parameters of `must shard` by name, such as {"max_rejected": 0.05, "workers": 4}.
            evaluate_split: the split to evaluate on.
            preset: empty or auto: settings from the data's size and the model; else the published ones of a data set,
                such as imagenet.
            epochs: passes over the images; 0 leaves it to settings and preset.
            settings: parameters of `must train` by name, such as {"lr": 2e-5}; they win over the preset.
            precision: of the ONNX model: fp32, fp16 or int8.
            embeddings: the ONNX model gives images' embeddings too; cluster.yaml's predictions may ask for it as well.
            gate: what a model must pass to be promoted: label-free signals against zero-shot; reviewed, people's
                answers; labelled, the interval of its gain over the champion on evaluate_split; or none.
            gate_settings: parameters of `must gate` by name, such as {"min_gain": 0.01}.
            append: add the source's new images to the shards that are there.
            only_new: end early when nothing is new since a model was last promoted or stopped.
            register: puts what is promoted into another model registry too: mlflow (the one at MLFLOW_TRACKING_URI),
                kubeflow (Kubeflow's, at MODEL_REGISTRY_URL), or none.
            serve: after a promotion, write a KServe InferenceService whose server follows the registry's LATEST; apply:
                write and apply it; or none.
        """
        run = {"work_uri": work_uri, "run_id": run_id}
        page = summary(labelling_pods=cluster.predict.pods, serve=serve, **run)
        configure(page, "summary")
        with dsl.ExitHandler(page, name="stages"):
            names = {**run, "classes": classes, "model": model, "pretrained": pretrained}
            recipe = {"preset": preset, "settings": settings, "epochs": epochs}
            checked = inputs(
                labels=labels, split=split, shard_settings=shard_settings, precision=precision, gate=gate,
                gate_settings=gate_settings, model_name=model_name, register=register, serve=serve,
                registry_uri=registry_uri, predict_uri=cluster.predict.uri,
                tensorboard_uri=cluster.tensorboard, server=server_of(cluster),
                runtime=cluster.training.runtime if cluster.trains_in_trainjob else "", **names, **recipe,
            )  # fmt: skip
            configure(checked, "inputs")
            text = classifier(fingerprint=checked.output, **names)
            configure(text, "classifier")
            images = {
                "source": source, "test_source": test_source, "labels": labels, "split": split, "append": append,
                "settings": shard_settings, **run,
            }  # fmt: skip
            if cluster.shard.pods > 1:
                with dsl.ParallelFor(parts_of(cluster.shard.pods), name="shard parts") as part:
                    packed = shard_part(part=part, **images)
                    configure(packed, "shard", title="shard part").after(checked)
            else:
                packed = checked
            sharded = shard(**images)
            configure(sharded, "shard").after(packed)
            index_sha256, weights = sharded.outputs["Output"], text.outputs["weights"]
            registry = {"registry_uri": registry_uri, "model_name": model_name}
            best = champion(
                index_sha256=index_sha256, classifier=weights, only_new=only_new, **run,
                **registry, **recipe,
            )  # fmt: skip
            configure(best, "champion")
            with dsl.If(best.outputs["Output"] == "train", name="something new"):
                indexed = {**run, "index_sha256": index_sha256}
                start = {**indexed, "classifier": weights, **recipe}
                if cluster.trains_in_trainjob:
                    trained = train_job(
                        nodes=nodes_of(cluster), tensorboard_uri=cluster.tensorboard, model_name=model_name, **start
                    )
                else:
                    trained = train(processes=cluster.training.processes, tensorboard_uri=cluster.tensorboard, **start)
                configure(trained, "train")
                bundle = trained.outputs["bundle"]
                evaluated = evaluate(bundle=bundle, classifier=weights, split=evaluate_split, **indexed)
                configure(evaluated, "evaluate")
                details = evaluated.outputs["details"]
                decided = gate_stage(
                    bundle=bundle, details=details, key=best.outputs["key"], gate=gate,
                    champion=best.outputs["version"], champion_uri=best.outputs["bundle_uri"],
                    gate_settings=gate_settings, split=evaluate_split, **run, **registry,
                )  # fmt: skip
                configure(decided, "gate")
                embedded = True if predicts_embeddings(cluster) else embeddings
                exported = export(bundle=bundle, details=details, precision=precision, embeddings=embedded, **indexed)
                configure(exported, "export")
                with dsl.If(decided.outputs["Output"] == "promote", name="passed the gate"):
                    promoted = promote(
                        bundle=bundle, onnx=exported.outputs["onnx"], details=details,
                        decision=decided.outputs["decision"], key=best.outputs["key"], champion=best.outputs["version"],
                        register=register, **run, **registry,
                    )  # fmt: skip
                    configure(promoted, "promote")
                    if cluster.predict.pods:
                        # The version is passed as an artifact: in a loop, kfp 2.17's local runner replaces every
                        # parameter that comes from a task outside the loop by the loop's item.
                        with dsl.ParallelFor(parts_of(cluster.predict.pods), name="predict parts") as part:
                            labelled = predict(
                                part=part, onnx=exported.outputs["onnx"], promoted=promoted.outputs["promoted"],
                                predict_uri=cluster.predict.uri, settings=cluster.predict.settings, **indexed,
                            )  # fmt: skip
                            configure(labelled, "predict", title="predict part")
                    with dsl.If(serve != "none", name="served"):
                        served = serve_stage(
                            version=promoted.outputs["Output"], server=server_of(cluster), how=serve, **run, **registry
                        )
                        configure(served, "serve")
                    with dsl.Else(name="not served"):
                        configure(close(why="serve is none: no server is written"), "close", title="not served")
                with dsl.Elif(decided.outputs["Output"] == "ask", name="waiting for answers"):
                    questions = review(bundle=bundle, classifier=weights, key=best.outputs["key"], **run)
                    configure(questions, "review")
                with dsl.Else(name="not promoted"):
                    configure(
                        close(why="the gate promotes nothing: the champion stays"), "close", title="champion stays"
                    )
            with dsl.Else(name="nothing new"):
                configure(close(why="nothing is new: nothing is trained"), "close", title="nothing new")

    return must_pipeline
