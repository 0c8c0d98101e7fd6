"""The controller process: discovery, registry, health checks, admin API, status page."""
