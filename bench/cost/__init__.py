"""Is this checkout as cheap as another commit? Both are installed, measured in turns, and compared."""
