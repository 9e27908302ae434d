"""The stage serve: a KServe InferenceService that follows the registry's LATEST, written and, if requested, applied."""
