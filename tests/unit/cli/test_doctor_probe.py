"""Probes: the facts as read from kernel files, sockets, checkpoints and the hub."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.cli.diagnosis import checkpoint, hardware, network
from penstock.cli.diagnosis.facts import Memory, Model
from penstock.cli.diagnosis.probe import ENGINE_PACKAGES, gather, read_cpuinfo, read_gpus
from penstock.cluster.rundir import RunDir, Service

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def write(directory: Path, config: object = CONFIG, weights: int = 1000) -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(bytes(weights))
    return directory


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """An HTTP server on a free port of loopback that answers every GET and HEAD with ``body``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_gathering_changes_nothing_and_loads_no_torch(tmp_path: Path) -> None:
    """The facts of this very machine are complete, and the home that does not exist is not made."""
    import sys

    before = "torch" in sys.modules
    home = tmp_path / "not" / "there"
    facts = gather(Model(name="x"), home, {"--port": 0}, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert facts.python[0] == 3
    assert facts.memory.total_bytes > 0 and 0 < facts.memory.free_bytes <= facts.memory.total_bytes
    assert facts.cpu.cores >= facts.cpu.allowed_cores >= 1
    assert facts.open_files_hard >= facts.open_files_soft > 0
    assert [place.problem for place in facts.places] == ["", ""]
    assert facts.hub.offline and facts.run_directory.mode is None
    assert list(tmp_path.iterdir()) == []
    assert ("torch" in sys.modules) == before


def test_the_packages_looked_for_are_those_of_the_engine_extra() -> None:
    """A dependency added to the extra is looked for as well; torch has a finding of its own."""
    import tomllib

    root = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["engine"]
    names = {re.split(r"[<>=~!; \[]", requirement)[0] for requirement in extra}
    assert names - {"torch"} == set(ENGINE_PACKAGES)


def test_cpuinfo_is_read_on_both_architectures() -> None:
    """x86 says flags, Arm says Features, and an empty file says nothing."""
    assert read_cpuinfo("processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t: x\n") == (
        "Xeon",
        frozenset({"fpu", "avx2"}),
    )
    assert read_cpuinfo("processor\t: 0\nFeatures\t: asimd bf16\n") == ("", frozenset({"asimd", "bf16"}))
    assert read_cpuinfo("") == ("", frozenset())


def test_nvidia_smi_rows_are_read() -> None:
    """Two cards, and one that shares the machine's memory and so states no size."""
    gpus = read_gpus("NVIDIA H200, 143771, 580.65\nNVIDIA L4, 23034, 580.65\nNVIDIA GB10, [N/A], 580.65\n\n")
    assert [(gpu.name, gpu.memory_bytes >> 20) for gpu in gpus] == [
        ("NVIDIA H200", 143771),
        ("NVIDIA L4", 23034),
        ("NVIDIA GB10", 0),
    ]


class TestPorts:
    """Who holds a port."""

    def test_a_free_port_is_free_and_stays_so(self) -> None:
        """Trying it twice gives the same answer: the probe lets go of it."""
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            number = held.getsockname()[1]
        assert [network.holder(number, []), network.holder(number, [])] == ["free", "free"]

    def test_a_held_port_is_ours_or_anothers(self) -> None:
        """A port of a service that runs now is told from one that another program holds."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen(1)
            number = other.getsockname()[1]
            assert network.holder(number, []) == "other"
            assert network.holder(number, [number]) == "penstock"

    def test_an_address_that_cannot_be_bound_is_forbidden(self) -> None:
        """An error other than a port in use is no statement about another program."""
        assert network.holder(0, [], host="192.0.2.1") == "forbidden"

    def test_a_running_service_is_known_by_its_run_directory(self, tmp_path: Path) -> None:
        """The ports come from what the service wrote, as for penstock ps."""
        run = RunDir.create(tmp_path, 1)
        try:
            with socket.socket() as data:
                data.bind(("127.0.0.1", 0))
                data.listen(1)
                number = data.getsockname()[1]
                run.describe(
                    Service(
                        pid=1,
                        model="m",
                        url=f"http://127.0.0.1:{number}",
                        admin_url="http://[::1]:8001",
                        started_at=0.0,
                        version="0",
                    )
                )
                facts = gather(Model(name="x"), tmp_path, {"--port": number}, {"HF_HUB_OFFLINE": "1"})
        finally:
            run.remove()
        assert [port.holder for port in facts.ports] == ["penstock"]

    def test_a_home_that_is_a_file_is_reported_not_thrown(self, tmp_path: Path) -> None:
        """The one place that the doctor itself reads from may be broken too."""
        home = tmp_path / "file"
        home.write_text("")
        facts = gather(Model(name="x"), home, {}, {"HF_HUB_OFFLINE": "1"})
        assert "not a directory" in facts.places[1].problem


class TestHub:
    """Whether the hub answers."""

    def test_any_answer_of_http_counts(self) -> None:
        """A mirror that refuses HEAD is reachable all the same."""
        with answering(b"") as number:
            hub = network.hub({"HF_ENDPOINT": f"http://127.0.0.1:{number}", "HF_TOKEN": "hf_secret"})
        assert hub.problem == "" and hub.has_token
        assert "hf_secret" not in repr(hub)

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "not a url", "http://[broken"])
    def test_an_unreachable_or_malformed_endpoint_is_a_problem_in_words(self, endpoint: str) -> None:
        """Refused connections and typing errors are told, not thrown."""
        assert network.hub({"HF_ENDPOINT": endpoint}).problem

    def test_a_hub_that_hangs_is_given_up(self) -> None:
        """A network that swallows packets costs the bound and no more."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(8)
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            hub = network.hub({"HF_ENDPOINT": endpoint}, timeout_s=0.05)
        assert "0.05 s" in hub.problem or "timed out" in hub.problem

    @pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
    def test_offline_asks_nobody(self, value: str) -> None:
        """With HF_HUB_OFFLINE the hub is not tried at all."""
        hub = network.hub({"HF_HUB_OFFLINE": value, "HF_ENDPOINT": "http://127.0.0.1:1"})
        assert hub.offline and hub.problem == ""


class TestCheckpoint:
    """What a local model takes."""

    def test_sizes_come_from_the_files(self, tmp_path: Path) -> None:
        """2 (keys, values) x 4 layers x 2 heads x 16 x 2 bytes a token; weights are the files' bytes."""
        model = checkpoint.find(str(write(tmp_path / "tiny")))
        assert model.problem == ""
        assert (model.name, model.weights_bytes, model.kv_bytes_per_token) == ("tiny", 1000, 2 * 4 * 2 * 16 * 2)
        assert model.context_tokens == 2048 and model.workspace_bytes > 0

    def test_heads_and_dtype_default_as_in_transformers(self, tmp_path: Path) -> None:
        """Without the fields: as many key as query heads, hidden size over heads, float32."""
        config = {k: v for k, v in CONFIG.items() if k not in ("num_key_value_heads", "head_dim", "torch_dtype")}
        model = checkpoint.inspect(write(tmp_path / "tiny", config))
        assert model.kv_bytes_per_token == 2 * 4 * 8 * 8 * 4

    def test_an_encoder_needs_no_cache(self, tmp_path: Path) -> None:
        """Of an encoder only the weights are counted."""
        model = checkpoint.inspect(write(tmp_path / "encoder", {**CONFIG, "type_vocab_size": 2}))
        assert (model.problem, model.weights_bytes, model.kv_bytes_per_token) == ("", 1000, 0)

    def test_a_larger_model_is_sound_though_its_cache_is_unknown(self, tmp_path: Path) -> None:
        """A decoder described in text_config, sparsely, is no problem; only its weights are counted."""
        model = checkpoint.inspect(write(tmp_path / "sees", {"text_config": {"hidden_size": 64}}))
        assert (model.problem, model.weights_bytes, model.kv_bytes_per_token) == ("", 1000, 0)
        assert hardware.memory(Memory(total_bytes=10**9, free_bytes=10**9), model).status == "ok"

    @pytest.mark.parametrize(
        ("config", "named"),
        [
            ([], "object"),
            ({**CONFIG, "num_hidden_layers": 0}, "num_hidden_layers"),
            ({**CONFIG, "num_attention_heads": "8"}, "num_attention_heads"),
            ({**CONFIG, "hidden_size": True}, "hidden_size"),
            ({**CONFIG, "max_position_embeddings": None}, "max_position_embeddings"),
            ({**CONFIG, "quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ],
    )
    def test_a_bad_config_names_file_and_field(self, tmp_path: Path, config: object, named: str) -> None:
        """Whatever stands in config.json, the finding says where to look."""
        problem = checkpoint.inspect(write(tmp_path / "bad", config)).problem
        assert "config.json" in problem and named in problem

    @pytest.mark.parametrize(
        "text", ["", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin1")]
    )
    def test_a_config_that_is_not_json_is_a_problem(self, tmp_path: Path, text: str) -> None:
        """Truncated, absurdly nested or not text at all."""
        directory = write(tmp_path / "bad")
        (directory / "config.json").write_text(text)
        assert "config.json" in checkpoint.inspect(directory).problem

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        """No config.json, no weights, no directory, and weights that are a dangling link."""
        (tmp_path / "empty").mkdir()
        assert "config.json" in checkpoint.find(str(tmp_path / "empty")).problem
        directory = write(tmp_path / "light", weights=0)
        assert "safetensors" in checkpoint.find(str(directory)).problem
        (directory / "more.safetensors").symlink_to(tmp_path / "gone")
        assert "more.safetensors" in checkpoint.find(str(directory)).problem
        assert str(tmp_path / "nowhere") in checkpoint.find(str(tmp_path / "nowhere")).problem

    def test_no_name_means_the_bundled_model(self) -> None:
        """Without a name the bundled model is measured."""
        assert checkpoint.find(None).name == "pydoc"
        assert checkpoint.find(None).weights_bytes > 1_000_000
