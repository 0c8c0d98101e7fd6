"""A front process: connections, routes, dispatch into slots, responses, and the ASGI application."""
