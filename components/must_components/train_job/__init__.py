"""Training as a TrainJob of Kubeflow Trainer, on one node or several."""
