"""The DAG, how it is compiled, and how it runs: on this machine or on Kubeflow Pipelines."""

# Shown in Kubeflow's page for the pipeline, its versions and its experiments.
DESCRIPTION = "Adapts CLIP to unlabeled images: masked unsupervised self-training (arXiv 2206.02967)."
