"""The command line: options made from settings, and the call of a typer program."""
