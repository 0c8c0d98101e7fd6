"""Where peers are, and where to listen: addresses, networks, bound sockets."""
