"""The stage serve."""
