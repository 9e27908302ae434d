"""The image of each stage. cluster.yaml's registry, tag and digests replace these when the pipeline is compiled.

Four images serve all stages, and one the model: a stage that needs no torch must not carry it, and only training needs
CUDA's. A tag is the version of the code inside: Kubeflow's cache key contains the image's name, so a tag that moves
makes the cache lie.
"""

from typing import Final

from must import __version__

IMAGES: Final = ("must-shard", "must-torch", "must-train", "must-launcher", "must-serve")

SHARD = f"must-shard:{__version__}"  # must and Google's storage client
TORCH = f"must-torch:{__version__}"  # torch for CPUs: classifier, evaluate, gate, export, promote
TRAIN = f"must-train:{__version__}"  # torch with CUDA
LAUNCHER = f"must-launcher:{__version__}"  # the kubeflow SDK, which submits a TrainJob; no torch
