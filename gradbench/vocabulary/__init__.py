"""The words that everything else is written in: coordinates, metrics, statuses, causes, exit codes."""
