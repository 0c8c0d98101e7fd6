"""The model's interpreter: claims requests and calls predict(). Standard library only, Python 3.7 to 3.14."""
