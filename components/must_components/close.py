"""The end of a way through the DAG that does nothing more: says so on the graph.

Kubeflow takes a group whose last step is a skipped condition for running for ever; each ends in something that runs.
"""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def close(why: str) -> None:
    """Prints why nothing follows. Never cached.

    Args:
        why: one line.
    """
    print(why)
