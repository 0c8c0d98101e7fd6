"""What a process writes down: log records, the process and the sinks that write them, the operator's line."""
