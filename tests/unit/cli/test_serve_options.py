"""How ``penstock serve`` turns flags and environment into settings, and what wrong ones are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli.main import build
from penstock.cli.wiring import opening
from penstock.cli.wiring.engines import check_adapters, first_adapters, given_source, source_of
from penstock.config.service import ServedModel
from penstock.config.settings import ServeSettings
from penstock.store.sources import resolve
from penstock.wire.errors import Problem

DEFAULTS = ServeSettings()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """The settings that the controller was started with."""
    seen: list[ServeSettings] = []

    def record(settings: ServeSettings, home: Path, display: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr(opening, "serve_process", record)
    return seen


def serve(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(build(), ["serve", *arguments], env=environment)


def test_without_flags_the_defaults_of_the_settings_hold(settings: list[ServeSettings]) -> None:
    """The command line repeats no default that differs from the settings' own."""
    assert serve().exit_code == 0
    assert settings == [DEFAULTS]


def test_a_flag_wins_over_the_environment_and_that_over_the_default(settings: list[ServeSettings]) -> None:
    """flag, then PENSTOCK_*, then default."""
    serve("--port", "9001", PENSTOCK_PORT="9000", PENSTOCK_ADMIN_PORT="9002")
    assert (settings[0].port, settings[0].admin_port, settings[0].replicas) == (9001, 9002, DEFAULTS.replicas)


def test_every_flag_has_its_variable(settings: list[ServeSettings]) -> None:
    """PENSTOCK_ and the flag's name in capitals."""
    result = serve(
        PENSTOCK_MODEL="org/name",
        PENSTOCK_SERVED_NAME="n",
        PENSTOCK_HOST="127.0.0.2",
        PENSTOCK_PORT="1",
        PENSTOCK_ADMIN_HOST="127.0.0.3",
        PENSTOCK_ADMIN_PORT="2",
        PENSTOCK_REPLICAS="3",
        PENSTOCK_DRAIN_TIMEOUT="4.5",
        PENSTOCK_DTYPE="bfloat16",
        PENSTOCK_MAX_MODEL_LEN="5",
        PENSTOCK_KV_MEMORY="2G",
        PENSTOCK_MAX_STEP_TOKENS="6",
        PENSTOCK_MAX_NUM_SEQS="7",
        PENSTOCK_ITL_TARGET_MS="62.5",
        PENSTOCK_PREFIX_CACHING="false",
        PENSTOCK_SPECULATIVE="prompt-lookup",
        PENSTOCK_SPECULATIVE_TOKENS="5",
        PENSTOCK_LORA_MODULES="tone=/adapters/tone",
        PENSTOCK_MAX_LORAS="9",
        PENSTOCK_MAX_LORA_RANK="10",
        PENSTOCK_LORA_DIR="/adapters",
        PENSTOCK_THREADS="8",
        PENSTOCK_REASONING_PARSER="mistral",
        PENSTOCK_TOOL_PARSER="hermes",
    )
    assert result.exit_code == 0, result.output
    assert settings == [
        ServeSettings(
            source="org/name",
            served_name="n",
            host="127.0.0.2",
            port=1,
            admin_host="127.0.0.3",
            admin_port=2,
            replicas=3,
            drain_timeout_s=4.5,
            dtype="bfloat16",
            max_model_len=5,
            kv_memory_bytes=2 << 30,
            max_step_tokens=6,
            max_num_seqs=7,
            itl_target_ms=62.5,
            prefix_caching=False,
            speculative="prompt-lookup",
            speculative_tokens=5,
            lora_modules={"tone": "/adapters/tone"},
            max_loras=9,
            max_lora_rank=10,
            lora_dir="/adapters",
            threads=8,
            reasoning_parser="mistral",
            tool_parser="hermes",
        )
    ]


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--port", "65536", "from 0 to 65535"),
        ("--port", "http", "from 0 to 65535"),
        ("--replicas", "0", "from 1 to 64"),
        ("--threads", "-1", "at least 1"),
        ("--max-model-len", "1.5", "at least 1"),
        ("--drain-timeout", "nan", "seconds of at least 0"),
        ("--drain-timeout", "-1", "seconds of at least 0"),
        ("--kv-memory", "lots", "512MiB"),
        ("--itl-target-ms", "0", "milliseconds above 0"),
        ("--itl-target-ms", "inf", "milliseconds above 0"),
        ("--dtype", "int4", "bfloat16"),
        ("--speculative-tokens", "33", "from 1 to 32"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_bad_value_names_key_value_and_what_is_allowed(
    option: str, value: str, allowed: str, by_variable: bool, settings: list[ServeSettings]
) -> None:
    """The exit code is 2, and a value that came from the environment names its variable."""
    variable = "PENSTOCK_" + option.removeprefix("--").replace("-", "_").upper()
    result = serve(**{variable: value}) if by_variable else serve(option, value)
    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    for words in (option, value, allowed):
        assert words in said
    assert not by_variable or variable in said
    assert settings == []


@pytest.mark.parametrize("command", [("serve",), ("evaluate", "text"), ("bench", "engine")])
def test_a_wrong_choice_is_told_what_there_is_and_nothing_of_a_library(command: tuple[str, ...]) -> None:
    """Also where the option is of a command below a command."""
    result = CliRunner().invoke(build(), [*command, "--quantization", "int2"])
    assert result.exit_code == 2
    assert "--quantization'" in result.output and ": 'int2' is not one of 'none', 'int8', 'int4'." in result.output


@pytest.mark.parametrize("option", ["--host", "--admin-host"])
def test_an_address_that_others_can_reach_needs_no_flag_since_it_asks_for_keys(
    option: str, settings: list[ServeSettings]
) -> None:
    """It is served; only the flag, or its variable, makes it answer everybody while there is no key."""
    assert serve(option, "0.0.0.0").exit_code == 0
    assert serve(option, "0.0.0.0", "--insecure-no-auth").exit_code == 0
    assert serve(option, "0.0.0.0", PENSTOCK_INSECURE_NO_AUTH="1").exit_code == 0
    assert [chosen.insecure_no_auth for chosen in settings] == [False, True, True]


def test_one_port_for_both_listeners_is_refused(settings: list[ServeSettings]) -> None:
    """Both options are named, and port 0 twice is two free ports."""
    result = serve("--port", "9000", "--admin-port", "9000")
    assert isinstance(result.exception, Problem)
    assert "--admin-port" in result.exception.message
    assert serve("--port", "0", "--admin-port", "0").exit_code == 0


def test_an_adapter_named_in_two_places_is_refused(tmp_path: Path, settings: list[ServeSettings]) -> None:
    """In the file and by a flag, one of the two would be dropped without a word."""
    file = tmp_path / "service.yaml"
    file.write_text("models: {base: {source: org/name, lora_modules: {tone: /a}}}")
    result = serve("--config", str(file), "--lora-modules", "tone=/b")
    assert result.exit_code != 0 and not settings
    assert isinstance(result.exception, Problem) and "'tone' is in" in result.exception.message


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: None, "is not a directory"),
        (lambda folder: folder.mkdir(), "adapter_config.json is missing"),
        (lambda folder: write_config(folder, peft_type="IA3"), "Supported: LORA"),
        (lambda folder: write_config(folder), "holds no adapter_model.safetensors"),
        (lambda folder: write_config(folder, weights="adapter_model.bin"), "is a pickle"),
        (lambda folder: write_config(folder, weights="adapter_model.safetensors", r=17), "--max-lora-rank"),
    ],
)
def test_an_adapter_to_begin_with_is_looked_at_before_any_engine_reads_it(
    spoil: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    """Its name, what is wrong with its folder, and a page about adapters instead of one about models."""
    spoil(tmp_path / "a")
    with pytest.raises(Problem) as refused:
        check_adapters({"tone": ("m", str(tmp_path / "a"))}, {"m": resolve(None)}, 16)
    assert "'tone' cannot be served" in refused.value.message and says in refused.value.message
    assert "lora.md" in refused.value.hint


def test_what_only_an_engine_can_tell_of_an_adapter_is_left_to_it(tmp_path: Path) -> None:
    """Ranks by pattern need the tensors' names; a mock engine takes folders that are not there."""
    write_config(tmp_path / "a", weights="adapter_model.safetensors", r=17, rank_pattern={"q_proj": 4})
    check_adapters({"tone": ("m", str(tmp_path / "a"))}, {"m": resolve(None)}, 16)
    check_adapters({"tone": ("m", "/nowhere")}, {"m": source_of("mock://")}, 16)


def write_config(folder: Path, weights: str = "", **fields: Any) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | fields))
    if weights:
        (folder / weights).touch()


def test_the_bundled_model_is_upgraded_from_however_it_was_named() -> None:
    """By its name or by none: the next start finds what it was upgraded to."""
    assert given_source(ServeSettings(source="pydoc")) == given_source(ServeSettings())


def test_adapters_of_two_models_have_two_names() -> None:
    """Requests choose one by its name alone."""
    also = {"small": ServedModel(source="org/small", lora_modules={"tone": "/b"})}
    with pytest.raises(Problem, match="'tone' is of 'base' and of 'small'"):
        first_adapters(ServeSettings(source="org/name", lora_modules={"tone": "/a"}, also=also), "base")
