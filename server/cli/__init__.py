"""What a person types and sees: the commands of an instance and their display."""
