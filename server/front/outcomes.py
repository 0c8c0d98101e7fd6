"""What a client is answered when there is no answer of the model: status, code and message by outcome.

Pure.  Messages name the setting or the log that helps, and never carry the model's traceback.
"""

from __future__ import annotations

from twofold.server.front.dispatch import EXPIRED, QUARANTINED
from twofold.server.replica import frame
from twofold.server.telemetry import metrics
from twofold.wire.refusal import Refusal

BUSY = Refusal(503, "ServiceUnavailable", "the queue is full")
DOWN = Refusal(503, "ServiceUnavailable", "no replica can serve; see /health")
BY_OUTCOME = {
    frame.RAISED: Refusal(500, "InternalServerError", "predict() failed; the predict log has the traceback"),
    frame.TOO_LARGE: Refusal(500, "InternalServerError", "the answer is larger than max_answer_mb allows"),
    frame.REFUSED: Refusal(500, "InternalServerError", "the replica died while it worked on this request"),
    EXPIRED: Refusal(500, "InternalServerError", "no answer within predict_timeout"),
    QUARANTINED: Refusal(
        500, "InternalServerError", "this body killed replicas a moment ago; refused for now"
    ),
}
# Outcomes that have a counter of their own, besides that of their status.
COUNTED = {
    frame.REFUSED: metrics.REFUSED,
    QUARANTINED: metrics.REFUSED,
    EXPIRED: metrics.DEADLINE,
}


def failure(outcome: int, payload: bytes) -> Refusal:
    """The refusal for an outcome other than ANSWERED; `payload` is what the replica left in the slot.

    Raises KeyError for ANSWERED, and for outcomes that Dispatch keeps to itself (RETRY, SKIPPED).
    """
    if outcome == frame.MALFORMED:
        reason = payload.decode("utf-8", "replace")
        return Refusal(400, "InvalidParameter", "the body is not JSON: " + reason)
    return BY_OUTCOME[outcome]
