"""Answers what it was sent, for round trips of large bodies."""


def load_model():
    return None


def predict(data, model=load_model()):
    return data
