"""The DAG, how it is compiled, and how it runs on a laptop."""
