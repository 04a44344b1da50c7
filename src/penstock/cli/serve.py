"""``penstock serve [MODEL]``: one command serves a model.

In: flags, each also as an environment variable PENSTOCK_*; out: a running service until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.serve_files import issuers_of, prices_of, with_file
from penstock.cli.serve_flags import count, milliseconds, named_paths, option, seconds
from penstock.cli.sizes import parse_size
from penstock.config.desired import Balance
from penstock.config.settings import (
    NO_SPECULATION,
    DType,
    KvCacheDType,
    Quantization,
    ReasoningParser,
    ServeSettings,
    ToolParser,
)
from penstock.wire.errors import Problem


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", help="Serve a model over the OpenAI API.")(serve)


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            envvar="PENSTOCK_MODEL",
            help="A directory in Hugging Face layout, hf://org/name[@revision] or org/name. "
            "Without one: pydoc, the bundled demonstration model. mock://[SCRIPT] pretends, without any model.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        option("--config", help="File of further models and of names; without MODEL its first model is the first."),
    ] = None,
    served_name: Annotated[
        str | None, option("--served-name", help="Name that requests use; by default the directory's or org/name.")
    ] = None,
    host: Annotated[str, option("--host", help="Address of the API.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="Port of the API; 0 takes a free one.", **count(0, 65535))] = 8000,
    admin_host: Annotated[str, option("--admin-host", help="Address of health and metrics.")] = "127.0.0.1",
    admin_port: Annotated[
        int, option("--admin-port", help="Port of health and metrics; 0 takes a free one.", **count(0, 65535))
    ] = 8001,
    replicas: Annotated[int, option("--replicas", help="Engine processes.", **count(1, 64))] = 1,
    balance: Annotated[
        Balance,
        option(
            "--balance",
            help="How requests are spread over replicas: by outstanding tokens, by the prompt's beginning, "
            "or by predicted time.",
        ),
    ] = "least-tokens",
    drain_timeout: Annotated[
        float,
        option(
            "--drain-timeout",
            help="Seconds that running requests get to finish at the end.",
            parser=seconds,
            metavar="SECONDS",
        ),
    ] = 30.0,
    dtype: Annotated[DType, option("--dtype", help="Numbers to compute with; auto takes the checkpoint's.")] = "auto",
    exact: Annotated[
        bool,
        option(
            "--exact/--fast",
            help="Exact: the same bits for a request alone, in any batch and in training; slower.",
        ),
    ] = False,
    quantization: Annotated[
        Quantization,
        option(
            "--quantization",
            help="Keep weights in 8 or 4 bits, quantised while they are loaded: less memory, more speed, "
            "answers a little worse. Not with --exact.",
        ),
    ] = "none",
    kv_cache_dtype: Annotated[
        KvCacheDType,
        option("--kv-cache-dtype", help="Numbers of the KV cache; int8: half the memory, faster, answers a bit worse."),
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        option(
            "--max-model-len",
            help="Longest prompt and answer together, in tokens; by default the model's.",
            **count(1),
        ),
    ] = None,
    kv_memory: Annotated[
        int | None,
        option(
            "--kv-memory",
            help="Memory for the KV cache of each replica, like 512MiB or 2G; by default from what is free.",
            parser=parse_size,
            metavar="SIZE",
        ),
    ] = None,
    max_step_tokens: Annotated[int, option("--max-step-tokens", help="Tokens computed in one step.", **count(1))] = 512,
    max_num_seqs: Annotated[int, option("--max-num-seqs", help="Sequences computed at a time.", **count(1))] = 256,
    itl_target: Annotated[
        float | None,
        option(
            "--itl-target-ms",
            help="Milliseconds between two tokens of a stream to keep, at the cost of prompts and of how many run; "
            "by default none.",
            parser=milliseconds,
            metavar="MS",
        ),
    ] = None,
    prefix_caching: Annotated[
        bool, option("--prefix-caching/--no-prefix-caching", help="Reuse the KV cache of equal beginnings.")
    ] = True,
    speculative: Annotated[
        str,
        option(
            "--speculative",
            help="Propose tokens and verify them in one step: none, prompt-lookup (what followed the same words "
            "before), or a small model of the same vocabulary, named as MODEL. The answers stay the same; where it "
            "does not pay it rests.",
            metavar="none|prompt-lookup|MODEL",
        ),
    ] = NO_SPECULATION,
    speculative_tokens: Annotated[
        int, option("--speculative-tokens", help="Tokens proposed at a time, at most.", **count(1, 32))
    ] = 8,
    threads: Annotated[int | None, option("--threads", help="CPU threads of each replica.", **count(1))] = None,
    reasoning_parser: Annotated[
        ReasoningParser,
        option(
            "--reasoning-parser",
            help="Marks of the model's thinking, which is answered as reasoning_content; auto finds them.",
        ),
    ] = "auto",
    tool_parser: Annotated[
        ToolParser,
        option(
            "--tool-parser",
            help="Style of the model's tool calls; auto finds it, none leaves them in the text.",
        ),
    ] = "auto",
    lora_modules: Annotated[
        list[str] | None,
        option(
            "--lora-modules",
            help="LoRA adapter of the model to begin with, the name that requests use and a folder as PEFT writes it; "
            "again for more.",
            metavar="NAME=PATH",
        ),
    ] = None,
    max_loras: Annotated[
        int,
        option(
            "--max-loras",
            help="Adapters that may be loaded at a time, for which memory is kept; those to begin with always may.",
            **count(0, 1000),
        ),
    ] = 0,
    max_lora_rank: Annotated[int, option("--max-lora-rank", help="Largest rank of an adapter.", **count(1, 4096))] = 16,
    lora_dir: Annotated[
        Path | None,
        option(
            "--lora-dir",
            help="Directory below which administrators may have adapters loaded while the service runs; "
            "by default lora in PENSTOCK_HOME.",
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        option("--prices", help="File of prices per model and date, for budgets and usage in dollars."),
    ] = None,
    store: Annotated[
        str | None,
        option(
            "--store",
            help="Database of tenants, keys and records, sqlite:///PATH or postgresql://USER@HOST/DATABASE; "
            "by default a file in PENSTOCK_HOME.",
            metavar="URL",
        ),
    ] = None,
    redis: Annotated[
        str,
        option(
            "--redis",
            help="Redis through which all services of one store share their limits, redis://HOST:6379 or rediss://; "
            "a password is better given as PENSTOCK_REDIS. Without it each counts by itself.",
            metavar="URL",
        ),
    ] = "",
    issuers: Annotated[
        Path | None,
        option("--issuers", help="File of issuers whose signed tokens (JWT, OpenID Connect) are taken beside keys."),
    ] = None,
    tls_cert: Annotated[
        Path | None, option("--tls-cert", help="Certificate chain (PEM) that both listeners show; with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, option("--tls-key", help="Its private key (PEM), unencrypted.")] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        option(
            "--trusted-proxy",
            help="Network of proxies, like 10.0.0.0/8, whose X-Forwarded-For is believed; again for more. "
            "A service behind a proxy asks for keys on loopback, too.",
            metavar="CIDR",
        ),
    ] = None,
    insecure_no_auth: Annotated[
        bool,
        option(
            "--insecure-no-auth",
            help="Answer everybody on any address while there is no key, as on loopback; "
            "for containers and proxies that guard the port themselves.",
        ),
    ] = False,
) -> None:
    """Serve a model over the OpenAI API until SIGTERM or Ctrl-C; running requests then finish."""
    from penstock.cli.display import ServeDisplay
    from penstock.cli.home import penstock_home
    from penstock.cli.wiring.opening import serve_process

    settings = with_file(
        config,
        ServeSettings(
            source=model,
            served_name=served_name,
            host=host,
            port=port,
            admin_host=admin_host,
            admin_port=admin_port,
            replicas=replicas,
            balance=balance,
            drain_timeout_s=drain_timeout,
            store=store,
            redis=redis,
            issuers=issuers_of(issuers) if issuers is not None else (),
            tls_cert=str(tls_cert.absolute()) if tls_cert is not None else "",
            tls_key=str(tls_key.absolute()) if tls_key is not None else "",
            trusted_proxies=tuple(trusted_proxy or ()),
            insecure_no_auth=insecure_no_auth,
            dtype=dtype,
            exact=exact,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            kv_memory_bytes=kv_memory,
            max_step_tokens=max_step_tokens,
            max_num_seqs=max_num_seqs,
            itl_target_ms=itl_target,
            prefix_caching=prefix_caching,
            speculative=speculative,
            speculative_tokens=speculative_tokens,
            threads=threads,
            reasoning_parser=reasoning_parser,
            tool_parser=tool_parser,
            lora_modules=named_paths(lora_modules or [], "--lora-modules"),
            lora_dir=str(lora_dir.absolute()) if lora_dir is not None else "",
            max_loras=max_loras,
            max_lora_rank=max_lora_rank,
            prices=prices_of(prices) if prices is not None else (),
        ),
    )
    _check(settings)
    display = ServeDisplay()
    try:
        serve_process(settings, penstock_home(), display)
    finally:
        display.close()


def _check(settings: ServeSettings) -> None:
    """What no flag shows by itself.  Raises ``invalid_setting``."""
    from penstock.asgi.proxies import TrustedProxies

    if settings.port == settings.admin_port != 0:
        message = f"--port and --admin-port are both {settings.port}; they must differ."
        raise Problem("invalid_setting", message, param="--port")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise Problem("invalid_setting", "--tls-cert and --tls-key go together.", param="--tls-cert")
    try:
        TrustedProxies(settings.trusted_proxies)
    except ValueError as error:
        raise Problem("invalid_setting", f"--trusted-proxy: {error}.", param="--trusted-proxy") from None
    if settings.redis:
        from penstock.store.slices import check_url

        check_url(settings.redis)
