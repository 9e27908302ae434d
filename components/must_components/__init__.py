"""Thin Kubeflow adapters: parameters and artifacts in, one call into must, metadata out."""
