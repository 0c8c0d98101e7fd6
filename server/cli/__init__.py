"""The commands of an instance and their output."""
