"""Where peers are: addresses, networks, and Unix sockets at a path."""
