"""Code that all other packages use: storage, parameters, text, locks, CPU cores, exit codes, processes. No torch."""
