"""uvicorn + Starlette: one route, the model called inside the web process."""

import orjson
import score
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def predict(request: Request) -> Response:
    answer = score.predict(orjson.loads(await request.body()))
    return Response(orjson.dumps(answer), media_type="application/json")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
