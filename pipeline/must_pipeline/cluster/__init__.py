"""cluster.yaml, the settings of the platform team: read strictly, checked, and applied to the DAG's tasks."""
