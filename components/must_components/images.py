"""The image of each stage. cluster.yaml's registry, tag and digests replace these when the pipeline is compiled.

Three images run the stages, and one serves the model: stages without torch get an image without it, and only training
gets CUDA. A tag is the version of the code: Kubeflow's cache key contains the image's name, so with a moving tag the
cache would return results of other code.
"""

from typing import Final

from must import __version__

IMAGES: Final = ("must-shard", "must-torch", "must-train", "must-serve")

SHARD = f"must-shard:{__version__}"  # must and the storage clients; also for TrainJobs and servers
TORCH = f"must-torch:{__version__}"  # torch for CPUs: classifier, evaluate, gate, export, promote
TRAIN = f"must-train:{__version__}"  # torch with CUDA
