"""FastAPI for gunicorn's native `asgi` worker: the documented way to take a JSON body.

`async def`, although the model blocks: a plain `def` would add a thread hop to every call.
"""

from typing import Annotated, Any

import score
from fastapi import Body, FastAPI

app = FastAPI()


@app.post("/predict")
async def predict(data: Annotated[Any, Body()]) -> Any:
    return score.predict(data)
