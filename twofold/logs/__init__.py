"""Log records, the process that writes them, and the sinks that it writes to."""
