"""Trains the iris example: `python train.py` writes model.joblib and runtime.yaml beside this file.

The data comes with scikit-learn, so nothing is downloaded.
"""

import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent

# The environment is the one that trains: no archive, the interpreter that the server runs by default.
RUNTIME = """\
# What the model was trained with. A conda-pack archive would be named by INFERENCE_ENV_PATH;
# without one, the server's default interpreter serves the model, if its version is this one.
MODEL_ARTIFACT_VERSION: '3.0'
MODEL_DEPLOYMENT:
  INFERENCE_CONDA_ENV:
    INFERENCE_PYTHON_VERSION: '{version}'
"""


def main():
    data = load_iris()
    model = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=20, random_state=7))
    accuracy = cross_val_score(model, data.data, data.target, cv=5).mean()
    model.fit(data.data, data.target)
    joblib.dump((model, [str(name) for name in data.target_names]), HERE / "model.joblib")
    version = "{}.{}".format(*sys.version_info)
    (HERE / "runtime.yaml").write_text(RUNTIME.format(version=version))
    print(f"trained on {len(data.data)} flowers, accuracy {accuracy:.3f} (5-fold): {HERE / 'model.joblib'}")


if __name__ == "__main__":
    main()
