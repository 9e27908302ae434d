"""Kubeflow components: each takes parameters and artifacts, calls must once, and returns metadata."""
