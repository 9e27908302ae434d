"""The last task of a branch of the DAG that ends early: shows on the graph why.

Kubeflow shows a group whose last step was skipped as running for ever, so each branch ends in a task that runs.
"""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def close(why: str) -> None:
    """Prints why nothing follows. Never cached."""
    print(why)
