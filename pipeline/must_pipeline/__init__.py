"""The DAG, how it is compiled, and how it runs: on this machine or on Kubeflow Pipelines.

A module for each command of `must-pipeline`; what they are made of, in the folders.
"""

# On Kubeflow's page: of the pipeline, its versions and its experiments.
DESCRIPTION = "Adapts CLIP to unlabeled images: masked unsupervised self-training (arXiv 2206.02967)."
