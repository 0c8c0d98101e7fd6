"""A proxy process: client and upstream connections, router, admission, timeouts."""
