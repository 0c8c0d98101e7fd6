"""Safe unpacking of archives, and a cache of the results. Independent of models."""
