"""Kubeflow Pipelines' server, called only here: its API, checks of a run's parameters, waiting for a run's end."""
