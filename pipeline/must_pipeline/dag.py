"""The DAG: shard and classifier; champion; then, if there is something new, train, evaluate, export, gate and promote.

Argo looks at a run every ten seconds, so that a task takes 20 seconds or more, for Kubeflow's driver and its own pod,
and a group of tasks 10, for its driver. So there is one group: that the gate stopped a model, promote finds out.

The shards' parts are a loop of pods. Each writes to the bucket, from which the next stage reads; it returns nothing."""

from functools import partial
from typing import Any

from kfp import dsl

from must.config.defaults import list_parts
from must_components.components import COMPONENTS
from must_pipeline import DESCRIPTION
from must_pipeline.cluster import ClusterConfig
from must_pipeline.placement import configure_task, encode_nodes

RUN_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # used by `submit --again` and by the run's notes


def add_task(cluster: ClusterConfig, name: str, /, after: Any = None, **inputs: Any) -> Any:
    """A task of the component `name`, with its place in the cluster."""
    task = COMPONENTS[name](**inputs)
    if after is not None:
        task.after(after)
    return configure_task(task, name, cluster)


def make_label_pipeline(cluster: ClusterConfig) -> Any:
    """The second pipeline: images and a model in, a table of labels in parts out."""
    add = partial(add_task, cluster)

    @dsl.pipeline(name="must-label", description="Labels the images of a folder or bucket with an adapted model.")
    def must_label(
        source: str,
        output: str,
        work_uri: str,
        registry_uri: str = "",
        model_name: str = "model",
        model: str = "",
        only_new: bool = False,
        least_similarity: float = 0.5,
        settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    ):
        """Images and a model in, a table of labels in parts out.

        Args:
            source: folder or bucket prefix of images, an archive, shards, tables or a list.
            output: the table, FILE.csv, FILE.jsonl or FILE.parquet; its parts are in the folder FILE.csv.parts.
            work_uri: where the run's notes go, and the registry is: gs://bucket/prefix or a path that all stages see.
            registry_uri: where promoted models live; work_uri/registry if empty.
            model_name: the model's name in the registry, whose champion labels.
            model: another model: a folder of an ONNX file or a bundle.
            only_new: rows of other models stay, and only new images are labelled; else those are labelled again.
            least_similarity: images below it are counted in the summary.
            settings: parameters of `must predict` by name, such as {"abstain": -1, "top_k": 3}."""
        run: dict[str, Any] = {"work_uri": work_uri, "run_id": RUN_ID}
        with dsl.ExitHandler(add("summary", **run), name="stages"):
            chosen = add(
                "model", kind="bundle" if cluster.uses_gpu("label") else "onnx", model=model, model_name=model_name,
                registry_uri=registry_uri, **run,
            )  # fmt: skip
            with dsl.ParallelFor(list_parts(cluster.label.pods), name="parts") as part:
                add(
                    "label", after=chosen, part=part, source=source, output=output, only_new=only_new,
                    least_similarity=least_similarity, settings=settings, **run,
                )  # fmt: skip

    return must_label


def make_pipeline(cluster: ClusterConfig) -> Any:
    """The pipeline for a cluster; must/stages.py has a row for each of its tasks."""
    add = partial(add_task, cluster)

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
            only_new: end early when nothing is new since a model was last promoted or stopped."""
        run: dict[str, Any] = {"work_uri": work_uri, "run_id": RUN_ID}
        with dsl.ExitHandler(add("summary", **run), name="stages"):
            names = {"classes": classes, "model": model, "pretrained": pretrained, **run}
            images: dict[str, Any] = {
                "source": source, "test_source": test_source, "labels": labels, "split": split, "append": append,
            }  # fmt: skip
            recipe: dict[str, Any] = {"preset": preset, "settings": settings, "epochs": epochs}
            registry = {"registry_uri": registry_uri, "model_name": model_name}
            rules: dict[str, Any] = {"gate": gate, "gate_settings": gate_settings}
            judging: dict[str, Any] = {"evaluate_split": evaluate_split, "answers": answers}
            inputs = add(
                "inputs", shard_settings=shard_settings, precision=precision,
                runtime=cluster.training.runtime if cluster.trains_in_trainjob else "",
                **names, **images, **recipe, **registry, **rules, **judging,
            )  # fmt: skip
            weights = add("classifier", fingerprint=inputs.outputs["fingerprint"], **names).outputs["weights"]
            images |= {"settings": shard_settings, **run}
            previous = inputs
            if cluster.shard.pods > 1:
                with dsl.ParallelFor(list_parts(cluster.shard.pods), name="shard parts") as part:
                    previous = add("shard-part", inputs, part=part, **images)
            index_sha256 = add("shard", previous, **images).outputs["index_sha256"]
            champion = add(
                "champion", index_sha256=index_sha256, classifier=weights, processes=cluster.training_processes,
                only_new=only_new, **run, **recipe, **registry, **rules, **judging,
            ).outputs  # fmt: skip
            shards = {"index_sha256": index_sha256, **run}
            with dsl.If(champion["action"] == "train", name="something new"):
                train, pods = "train", dict[str, Any](processes=cluster.training.processes)
                if cluster.trains_in_trainjob:
                    train, pods = "train-on-nodes", {"nodes": encode_nodes(cluster), "model_name": model_name}
                trained = add(train, classifier=weights, answers=answers, **pods, **shards, **recipe)
                bundle = trained.outputs["bundle"]
                details = add("evaluate", bundle=bundle, classifier=weights, split=champion["split"], **shards).outputs[
                    "details"
                ]
                judged = {"bundle": bundle, "details": details, "key": champion["key"], "champion": champion["version"]}
                decision = add(
                    "gate", champion_uri=champion["bundle_uri"], split=champion["split"], **rules, **judged, **run,
                    **registry,
                ).outputs  # fmt: skip
                graph: dict[str, Any] = {"precision": precision, "embeddings": embeddings}
                onnx = add("export", bundle=bundle, details=details, **graph, **shards).outputs["onnx"]
                add("promote", onnx=onnx, decision=decision["decision"], **judged, **run, **registry)
            # Kubeflow marks a group as complete when a task in it ends, which none would do after the skipped group.
            add("close", what=champion["action"])

    return must_pipeline
