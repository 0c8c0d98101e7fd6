"""LitServe: two workers behind its own uvicorn processes."""

import sys
from typing import Any

import litserve
import score


class Predictor(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def predict(self, x: Any) -> Any:
        return score.predict(x)


if __name__ == "__main__":
    server = litserve.LitServer(Predictor(), accelerator="cpu", workers_per_device=2)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
