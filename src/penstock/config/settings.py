"""Settings of each process kind, as resolved from flags, environment and defaults.

In: values somebody chose; out: frozen structs that travel to a child process as one JSON line.
Each component receives its own rules from here, never the whole.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.config.desired import Balance
from penstock.config.issuers import Issuer
from penstock.config.names import Name
from penstock.config.prices import Price
from penstock.config.service import ServedModel
from penstock.config.tenants import DeclaredTenant

DType = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["none", "int8", "int4"]
"""In which whole numbers weights are kept; ``none``: as the checkpoint has them."""
KvCacheDType = Literal["auto", "bfloat16", "int8"]
"""In which numbers keys and values are kept; ``auto``: the model's own."""
NO_SPECULATION, PROMPT_LOOKUP = "none", "prompt-lookup"
"""Who proposes tokens that a step then verifies: nobody, or the sequence's own text; anything else is a draft model."""
ReasoningParser = Literal["auto", "none", "think", "mistral", "seed"]
"""In which marks a model thinks; ``auto``: as its chat template and vocabulary show."""
ToolParser = Literal["auto", "none", "hermes", "llama3", "mistral", "mistral-args"]
"""In which style a model writes tool calls; ``auto``: as its chat template shows; ``none``: they stay text."""

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where a service listens when nothing else is said: ``ServeSettings.host`` and ``port``."""
API_KEY = "PENSTOCK_API_KEY"
"""The variable of the environment from which commands that ask an endpoint take their key."""
KEY_HINT = f"Give a key that it knows with --api-key or in {API_KEY}."
"""What to do where an endpoint answers 401."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One engine process.  Sizes in bytes, lengths in tokens; ``None`` means: chosen from the model and the machine."""

    replica: str
    socket: str
    model_dir: str
    served_name: str
    dtype: DType = "auto"
    exact: bool = False
    """Compute every row in one order, so that no company changes its bits (docs/decisions/005-exact-mode.md)."""
    quantization: Quantization = "none"
    kv_cache_dtype: KvCacheDType = "auto"
    max_model_len: int | None = None
    kv_memory_bytes: int | None = None
    kv_share: float = 1.0
    """Which part of the free memory this engine may count as its own: 1 / replicas on this machine."""
    block_tokens: int = 32
    max_step_tokens: int = 512
    max_num_seqs: int = 256
    max_waiting: int = 4096
    itl_target_ms: float | None = None
    """Milliseconds between two tokens of a stream to keep; not for those of a priority above 0."""
    prefix_caching: bool = True
    speculative: str = NO_SPECULATION
    """Or ``prompt-lookup``, or the directory of a draft model."""
    speculative_tokens: int = 8
    """The most that one proposal has."""
    threads: int | None = None
    reasoning_parser: ReasoningParser = "auto"
    tool_parser: ToolParser = "auto"
    max_loras: int = 0
    """Adapters at a time, for which memory is kept."""
    max_lora_rank: int = 16


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway process.  Times in seconds, sizes in bytes."""

    gateway: str
    control_socket: str
    store_path: str
    listen_fd: int
    home: str
    """PENSTOCK_HOME: the servers' secret and the signed snapshot of keys lie there."""
    access_url: str
    """Database of tenants and keys."""
    redis: str = ""
    """URL of the Redis through which gateways share limits; empty: this one counts by itself."""
    open_without_keys: bool = False
    """While no key was ever made, answer everybody."""
    issuers: tuple[Issuer, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    """Files of a certificate chain and its key; empty: plain HTTP."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose x-forwarded-for is believed."""
    max_body_bytes: int = 8 * 1024 * 1024
    body_timeout_s: float = 30.0
    resume_timeout_s: float = 60.0
    """How long a stream waits for some replica to take it up again before it fails."""
    max_resumes: int = 8
    prices: tuple[Price, ...] = ()


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``penstock serve``: what the controller starts and keeps running."""

    source: str | None = None
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    replicas: int = 1
    balance: Balance = "least-tokens"
    max_concurrent: int = 0
    """Sequences that a gateway has at one replica at a time; 0: as many as come."""
    also: dict[str, ServedModel] = {}
    """Further models by served name; all other settings are theirs, too."""
    names: dict[str, Name] = {}
    drain_timeout_s: float = 30.0
    tenants: dict[str, DeclaredTenant] = {}
    """What the service's file declares; made when the service starts."""
    store: str | None = None
    """URL of the database of tenants, keys and records; ``None``: SQLite in PENSTOCK_HOME."""
    redis: str = ""
    """URL of the Redis through which this service shares limits with others of the same store; empty: it does not."""
    issuers: tuple[Issuer, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    """Files of a certificate chain and its key; empty: plain HTTP."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose x-forwarded-for is believed."""
    insecure_no_auth: bool = False
    dtype: DType = "auto"
    exact: bool = False
    quantization: Quantization = "none"
    kv_cache_dtype: KvCacheDType = "auto"
    max_model_len: int | None = None
    kv_memory_bytes: int | None = None
    max_step_tokens: int = 512
    max_num_seqs: int = 256
    itl_target_ms: float | None = None
    prefix_caching: bool = True
    speculative: str = NO_SPECULATION
    speculative_tokens: int = 8
    threads: int | None = None
    reasoning_parser: ReasoningParser = "auto"
    tool_parser: ToolParser = "auto"
    lora_modules: dict[str, str] = {}
    """Adapters of the first model to begin with: the names that requests use, and folders."""
    lora_dir: str = ""
    """Below it lie the folders that may be loaded while the service runs; empty: ``lora`` in PENSTOCK_HOME."""
    max_loras: int = 0
    """Adapters at a time; those to begin with are always among them."""
    max_lora_rank: int = 16
    prices: tuple[Price, ...] = ()
