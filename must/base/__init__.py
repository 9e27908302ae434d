"""What every house stands on: storage, parameters, text, locks, cores, exit codes, processes. No torch."""
