"""The parent of an instance: replica pool, fork server, channels, status, exit reasons."""
