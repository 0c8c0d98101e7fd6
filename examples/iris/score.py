"""Names the species of irises: a row holds sepal length and width, petal length and width, in cm."""

from pathlib import Path

import joblib


def load_model(model_file_name="model.joblib"):
    return joblib.load(Path(__file__).parent / model_file_name)


def predict(data, model=load_model()):
    """`data`: one row of four numbers, or a list of such rows."""
    forest, species = model
    rows = data if data and isinstance(data[0], list) else [data]
    probabilities = forest.predict_proba(rows)
    return {
        "prediction": [species[index] for index in probabilities.argmax(axis=1)],
        "probability": probabilities.max(axis=1),
    }
