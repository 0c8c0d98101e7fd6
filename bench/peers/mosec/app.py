"""mosec: a Rust front and two Python workers; BENCH_BATCH > 1 turns its dynamic batching on."""

import os
from typing import Any

import orjson
import score
from mosec import Server, Worker

BATCH = int(os.environ.get("BENCH_BATCH", "1"))
WAIT_MS = 1


class Predictor(Worker):
    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)

    def forward(self, data: Any) -> Any:
        if BATCH > 1:
            return [score.predict(item) for item in data]
        return score.predict(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predictor, num=2, max_batch_size=BATCH, max_wait_time=WAIT_MS, route="/predict")
    server.run()
