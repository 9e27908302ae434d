"""Fixtures for all tests."""

from tests.gcs import gcs_process, gcs_server

__all__ = ["gcs_process", "gcs_server"]
