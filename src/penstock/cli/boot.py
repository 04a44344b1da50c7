"""From a checkpoint directory to an engine that can step.

In: settings; out: tokenizer, loop and executor, with progress on the way.  Torch is imported here and not before,
so that an engine process answers on its socket while it loads.
"""

from __future__ import annotations

import os
from pathlib import Path

from penstock.cli.boot_encoder import boot_encoder
from penstock.cli.start_parts import StartParts
from penstock.config.settings import NO_SPECULATION, EngineSettings
from penstock.engine.cpu.spinning import bound_spinning
from penstock.engine.server.booted import Booted, Progress
from penstock.ports import Emit
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem


def import_ahead() -> None:
    """Import what takes longest of a start and is the same for every model; :func:`boot` waits for it."""
    bound_spinning(os.environ)
    import penstock.cli.boot_decoder  # noqa: F401  # its import is all that is wanted


def boot(settings: EngineSettings, progress: Progress, emit: Emit = lambda event: None) -> Booted:
    """Load a checkpoint and size the KV memory from what is then free.

    Raises ``Problem`` for whatever the checkpoint, the settings or the machine's memory do not allow.
    """
    parts = StartParts(emit)
    parts.done("settings")
    progress(0.0, "starting torch")
    import_ahead()
    from penstock.cli.boot_decoder import boot_decoder
    from penstock.engine.cpu.allocator import keep_freed_memory
    from penstock.engine.cpu.threads import use_threads
    from penstock.models.encoder_config import is_encoder

    parts.done("imports")
    keep_freed_memory()
    use_threads(settings.threads)
    directory = Path(settings.model_dir)
    if is_encoder(directory):
        _refuse_for_encoders(settings)
        return boot_encoder(settings, Tokenizer.load(directory), progress, emit, parts)
    return boot_decoder(settings, directory, progress, emit, parts)


def _refuse_for_encoders(settings: EngineSettings) -> None:
    asked = {
        "exact": settings.exact,
        "quantization": settings.quantization != "none",
        "kv_cache_dtype": settings.kv_cache_dtype != "auto",
        "speculative": settings.speculative != NO_SPECULATION,
    }
    for name, wanted in asked.items():
        if wanted:
            message = f"--{name.replace('_', '-')} is for models that generate; this is an encoder."
            raise Problem("invalid_setting", message, param=name)
