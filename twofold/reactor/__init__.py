"""Sockets in turns: the event loop, the reactor on its epoll, and the transports."""
