"""Every error Penstock can answer with: one table, one exception.

In: a code from the table and a message; out: an HTTP status and OpenAI's error body.
Never raised for our own bugs: those are assertions and answer ``internal_error``.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class Fault(enum.Enum):
    """Who has to act for the request to succeed."""

    CALLER = "caller"
    UPSTREAM = "upstream"
    US = "us"


class ErrorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.  ``retryable``: the same request may succeed later, unchanged."""

    status: int
    type: str
    fault: Fault
    retryable: bool = False
    hint: str = ""


def _caller(status: int, hint: str = "", type: str = "invalid_request_error") -> ErrorSpec:
    return ErrorSpec(status=status, type=type, fault=Fault.CALLER, hint=hint)


def _later(status: int, fault: Fault, hint: str = "", type: str = "server_error") -> ErrorSpec:
    return ErrorSpec(status=status, type=type, fault=fault, retryable=True, hint=hint)


ERRORS: dict[str, ErrorSpec] = {
    # The request itself.
    "bad_request": _caller(400, "Send well-formed HTTP/1.1."),
    "invalid_json": _caller(400, "Send one JSON object, encoded as UTF-8."),
    "invalid_type": _caller(400, "Correct the type of the named field."),
    "invalid_value": _caller(400, "Correct the value of the named field."),
    "unsupported_parameter": _caller(400, "Leave the named field out; this release does not act on it."),
    "context_length_exceeded": _caller(400, "Shorten the prompt or lower max_tokens."),
    "grammar_invalid": _caller(400, "docs/howto/structured-output.md lists what can be enforced."),
    "grammar_too_complex": _caller(400, "Make the schema, expression or grammar smaller or less ambiguous."),
    "template_error": _caller(400, "The model's chat template refused these messages."),
    "invalid_api_key": _caller(401, "Send a key as 'Authorization: Bearer KEY'.", "authentication_error"),
    "permission_denied": _caller(403, "Ask an administrator for a key with these rights.", "permission_error"),
    "conflict": _caller(409, "Look at what there is; another change may have come first."),
    "unsupported_media_type": _caller(415, "Send 'content-type: application/json'."),
    "model_not_found": _caller(404, "GET /v1/models lists the names that are served."),
    "not_found": _caller(404, "`penstock ps`, `tenants list`, `keys list` and `names list` show what there is."),
    "method_not_allowed": _caller(405),
    "body_too_large": _caller(413, "Send a smaller body."),
    "headers_too_large": _caller(431, "Send fewer or shorter headers."),
    # How much.
    "rate_limit_exceeded": _later(429, Fault.CALLER, "Try again after the seconds in retry-after.", "rate_limit_error"),
    "insufficient_quota": _caller(429, "Wait for the budget's next period, or have it raised.", "insufficient_quota"),
    "request_exceeds_limit": _caller(429, "Send a smaller request, or have the limit raised.", "rate_limit_error"),
    "price_missing": ErrorSpec(
        status=503,
        type="server_error",
        fault=Fault.US,
        hint="The operator gives the model a price (--prices; 0 where it is free), or takes the budget off.",
    ),
    # Capacity and time.
    "overloaded": _later(503, Fault.US, "Try again after the seconds in retry-after.", "overloaded_error"),
    "not_ready": _later(503, Fault.US, "The model is still loading; GET /ready tells when it is done."),
    "draining": _later(503, Fault.US, "This server is shutting down; try again."),
    "request_timeout": _later(408, Fault.CALLER, "The body did not arrive in time."),
    "limits_unavailable": _later(503, Fault.US, "The Redis that gateways share limits through does not answer."),
    "issuer_unavailable": _later(503, Fault.UPSTREAM, "The keys of the token's issuer could not be fetched yet."),
    "engine_lost": _later(502, Fault.UPSTREAM, "The engine ended during the request and no other could continue it."),
    "gateway_lost": _later(502, Fault.US, "The gateway that served it was killed; only the ledger says so."),
    "weights_changed": _later(503, Fault.US, "The model was upgraded meanwhile; ask again, from the beginning."),
    "engine_protocol": _later(502, Fault.UPSTREAM, "The engine answered something that is not the engine protocol."),
    "not_finite": ErrorSpec(
        status=500,
        type="server_error",
        fault=Fault.US,
        hint="The weights may be damaged, or overflow in this dtype; try --dtype float32.",
    ),
    "internal_error": _later(500, Fault.US, "A bug of Penstock; the log has the details."),
    # What a checkpoint or a machine can get wrong; these end `penstock serve` with the message.
    "source_not_found": _caller(404, "Give a directory in Hugging Face layout, hf://org/name or org/name."),
    "hub_offline": _later(503, Fault.UPSTREAM, "Check the network, or give a local directory."),
    "hub_error": _later(502, Fault.UPSTREAM, "Check HF_TOKEN and the network, or give a local directory."),
    "checkpoint_invalid": _caller(422, "Fetch or export the checkpoint again."),
    "checkpoint_unsupported": _caller(422, "docs/reference/models.md lists the supported architectures."),
    "checkpoint_unsafe": _caller(422, "Convert the weights to safetensors; Penstock never unpickles."),
    "artefact_invalid": _caller(422, "Remove the directory and run the stage that writes it again."),
    "insufficient_memory": _caller(507, "Lower --max-model-len or --kv-memory, or take a smaller model."),
    "insufficient_disk": _caller(507, "Free some disk space or move HF_HOME / PENSTOCK_HOME."),
    "store_unavailable": _later(503, Fault.US, "Check the disk and the rights of PENSTOCK_HOME, then start again."),
    "audit_broken": _caller(422, "Compare with a backup: rows were changed or removed outside Penstock."),
    "backup_invalid": _caller(422, "Give another backup; `penstock store verify FILE` tells whether one is whole."),
    "port_in_use": _caller(409, "Choose another port with --port or --admin-port."),
    "invalid_setting": _caller(400, "Correct the named setting."),
    # What `penstock train` and `penstock runs` can meet.
    "recipe_invalid": _caller(422, "Correct what is named; src/penstock/config/recipe.py lists every key."),
    "run_busy": _caller(409, "Wait for it, or give another --run-dir."),
    "run_not_found": _caller(404, "`penstock runs list` shows the runs that exist."),
    "training_diverged": _caller(422, "Lower learning_rate or clip_norm, or lengthen warmup_steps."),
    # What `penstock bench` and `penstock chat` can meet.
    "trace_invalid": _caller(422, "Give Azure's CSV or Mooncake's JSON lines, plain or .gz."),
    "server_unreachable": _later(503, Fault.UPSTREAM, "Start a server with `penstock serve`, or give its URL."),
    "upgrade_failed": _caller(409, "The log of the service tells more; the old source serves as before."),
    "endpoint_error": _later(502, Fault.UPSTREAM, "The endpoint answered with an error; its message is above."),
}


class Problem(Exception):
    """An error with a code from :data:`ERRORS`, as it travels to whoever asked.

    ``param`` names the offending field; ``retry_after_s`` becomes the ``retry-after`` header; ``hint`` says what to do
    where something better is known than what the table has.
    Raises ``KeyError`` for a code that is not in the table: that is our bug.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        # Files and templates of checkpoints are quoted, and a lone surrogate in them could be neither sent nor shown.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.spec = ERRORS[code]
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.hint = hint or self.spec.hint

    def body(self) -> dict[str, Any]:
        """OpenAI's error body: ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.spec.type, "param": self.param, "code": self.code}}
