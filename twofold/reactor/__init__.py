"""Batched socket I/O: the event loop, the reactor on its epoll, and the transports."""
