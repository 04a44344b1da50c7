"""Writes docs/reference/ from the code; ``--check`` says instead which pages are stale and exits with 1.

In: the installed package; out: routes.md, errors.md, cli.md, metrics.md, settings.md, models.md.
What a route does stands here, since a table of routes holds no words: a route without a line is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import surface
from penstock.events.metrics import CATALOGUE
from penstock.models.encoder_config import ENCODERS
from penstock.models.registry import FAMILIES, WHOLES
from penstock.wire.errors import ERRORS

FOLDER = surface.ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs`; do not edit. -->"

LISTENERS = {
    "data": "The data listener, by default http://127.0.0.1:8000.\nSet with `--host` and `--port`.",
    "admin": "The admin listener, by default http://127.0.0.1:8001.\nSet with `--admin-host` and `--admin-port`.",
    "engine": "The engine protocol, spoken on Unix sockets in the run directory.\n"
    "Not for clients: docs/decisions/001-engine-protocol.md explains it.",
}
ROUTES = {
    "/v1/chat/completions": "Chat completions as in OpenAI's API, streamed or not.",
    "/v1/completions": "Completions as in OpenAI's API: text, token ids, or lists of either.",
    "/v1/embeddings": "Embeddings as in OpenAI's API: of text, token ids, or lists of either.",
    "/v1/models": "The served models.",
    "/v1/models/": "One served model, `/v1/models/{id}`.",
    "/v1/models/{id}": "One served model.",
    "/tokenize": "Text or messages to token ids.",
    "/detokenize": "Token ids to text.",
    "/health": "200 while the process answers.",
    "/ready": "200 once requests are served, 503 with the reason before that and while draining.",
    "/openapi.json": "The data listener as an OpenAPI document.",
    "/version": "The version of Penstock.",
    "/metrics": "All metrics of all processes in Prometheus' text format.",
    "/admin/state": "The processes, their phases and the desired state, as JSON.",
    "/admin/keys": "GET: the API keys. POST: a new one; its secret is shown this once.",
    "/admin/keys/{name}": "GET: one key. DELETE: revokes it, everywhere within a second.",
    "/admin/keys/{name}/rotate": "A new secret for a key; the old one is taken for `grace_s` more.",
    "/admin/tenants": "GET: the tenants. POST: a new one.",
    "/admin/tenants/{name}": "GET: one tenant. PATCH: changes it. DELETE: removes one without keys.",
    "/admin/names": "GET: the public names and what they lead to. PATCH: adds, replaces and removes some.",
    "/admin/upgrade": "GET: the upgrade under way, or the last one. POST: begins one. DELETE: stops it and goes back.",
    "/v1/load_lora_adapter": "Loads a LoRA adapter into every engine of a model, or into none.",
    "/v1/unload_lora_adapter": "Unloads a LoRA adapter; what runs with it ends as it would.",
    "/admin/audit": "The newest rows of the audit log.",
    "/admin/openapi.json": "The admin listener as an OpenAPI document.",
    "/gateway/load": "Control socket: the version routed by, and the requests in flight.",
    "/gateway/metrics": "Control socket: the gateway's samples.",
    "/engine/generate": "One sequence, as a stream of JSON lines.",
    "/engine/embed": "Vectors of all inputs of a request, as one JSON body.",
    "/engine/abort": "Ends a sequence by its id.",
    "/engine/load": "Phase, progress, queues and KV use; answers from the first moment on.",
    "/engine/progress": "How far the named requests are, so that silence can be told from a stall.",
    "/engine/adapters/load": "Reads a LoRA adapter; answers its digest.",
    "/engine/adapters/unload": "Drops a LoRA adapter; what runs with it keeps it.",
    "/engine/drain": "Takes nothing new, finishes what runs.",
    "/engine/tokenize": "Text or messages to token ids.",
    "/engine/detokenize": "Token ids to text.",
    "/engine/metrics": "The engine's samples.",
}


def routes() -> str:
    parts = ["# Routes", NOTE]
    for listener, words in LISTENERS.items():
        rows = [
            (" ".join(r.methods), f"`{r.path}`", ROUTES[r.path]) for r in surface.routes() if r.listener == listener
        ]
        parts += [f"## {listener}", words, table(("method", "path", "what it does"), rows)]
    return page(parts)


def errors() -> str:
    rows = [
        (
            f"`{code}`",
            str(spec.status),
            f"`{spec.type}`",
            spec.fault.value,
            "yes" if spec.retryable else "no",
            spec.hint,
        )
        for code, spec in ERRORS.items()
    ]
    words = (
        'Every error body has OpenAI\'s form: `{"error": {"message", "type", "param", "code"}}`.\n'
        "`fault` says who has to act; `retry` says whether the same request may succeed later, unchanged."
    )
    return page(["# Errors", NOTE, words, table(("code", "status", "type", "fault", "retry", "what to do"), rows)])


def cli() -> str:
    parts = ["# Command line", NOTE, "Precedence: flag, then environment, then default."]
    for command in surface.commands():
        if command.hidden:
            continue
        rows = [
            (
                f"`{' '.join(flag.names) or flag.name.upper()}`",
                f"`{flag.default}`" if flag.default else "",
                f"`{flag.environment}`" if flag.environment else "",
                flag.help,
            )
            for flag in command.flags
            if not flag.hidden
        ]
        parts += [f"## {command.path}", command.help]
        if rows:
            parts.append(table(("flag", "default", "environment", "what it does"), rows))
    return page(parts)


def metrics() -> str:
    rows = [(f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in CATALOGUE.values()]
    words = "`GET /metrics` on the admin listener shows them, each with a label `process`."
    return page(["# Metrics", NOTE, words, table(("name", "kind", "labels", "what it counts"), rows)])


def settings() -> str:
    parts = ["# Settings", NOTE, "Variables of the environment that Penstock reads for itself:"]
    parts.append("\n".join(f"- `{name}`" for name in surface.environment_variables()))
    parts.append("`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` keep the meaning that huggingface_hub gives them.")
    for struct in surface.SETTINGS:
        rows = [(f"`{name}`", f"`{kind}`", f"`{d}`" if d else "(required)") for name, kind, d in surface.fields(struct)]
        parts += [f"## {struct.__name__}", (struct.__doc__ or "").strip(), table(("field", "type", "default"), rows)]
    return page(parts)


def models() -> str:
    rows = [(f"`{family.architecture}`", f"`{family.model_type}`") for family in FAMILIES.values()]
    rows += [(f"`{name}`", f"`{family.model_type}`, its text part") for name, family in WHOLES.items()]
    words = (
        "A checkpoint is a directory in Hugging Face layout: `config.json`, safetensors, `tokenizer.json`.\n"
        "Its `architectures` in `config.json` must name one of these.\n"
        "Rope scaling may be linear, Llama 3's, YaRN or LongRoPE (docs/decisions/004-longrope-by-context.md).\n"
        "Of a model that also sees, only what belongs to text is read: images are not understood.\n"
        "In bfloat16, whatever weights are kept in, a step is one compiled call (docs/decisions/020-the-fast-step.md); "
        "models with experts, Mixtral and Qwen3 MoE, are computed op by op.\n"
        "Another architecture: docs/howto/add-a-model-family.md."
    )
    encoders = (
        "Encoders embed texts and generate none; docs/howto/embeddings.md tells how they are served.\n"
        "Every decoder above embeds texts, too."
    )
    encoder_rows = [(f"`{architecture}`", f"`{model_type}`") for architecture, model_type in ENCODERS.items()]
    head = ("architecture", "model_type")
    return page(["# Models", NOTE, words, table(head, rows), "## Encoders", encoders, table(head, encoder_rows)])


PAGES: dict[str, Callable[[], str]] = {
    "routes": routes,
    "errors": errors,
    "cli": cli,
    "metrics": metrics,
    "settings": settings,
    "models": models,
}


def page(parts: Iterable[str]) -> str:
    """Paragraphs, parted by empty lines."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` compare them.  The exit status."""
    stale = []
    for name, write in PAGES.items():
        path, text = FOLDER / f"{name}.md", write()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(surface.ROOT)))
        if "--check" not in arguments:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if "--check" in arguments and stale:
        print(f"stale: {' '.join(stale)}; `make docs` writes them again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
