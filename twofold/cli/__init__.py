"""The command line: options made from settings, and one call of a typer program."""
