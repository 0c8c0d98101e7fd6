"""Triton's Python backend: the HTTP body arrives as one BYTES element (a "raw binary request")."""

import numpy
import orjson
import score
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        body = backend.get_input_tensor_by_name(request, "BODY").as_numpy()[0]
        answer = orjson.dumps(score.predict(orjson.loads(body)))
        tensor = backend.Tensor("ANSWER", numpy.array([answer], dtype=numpy.object_))
        return backend.InferenceResponse([tensor])
