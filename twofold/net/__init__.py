"""Addresses, networks, listening and connected sockets."""
