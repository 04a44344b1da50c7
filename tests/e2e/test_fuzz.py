"""Both listeners under a fuzzer that reads their OpenAPI documents: nothing it sends is answered with 500."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def guarded(serve) -> tuple[Any, str]:
    """A service over mock engines, and an administrator's key: what is fuzzed is what stands before the engines."""
    service = serve(model="mock://")
    asked = urllib.request.Request(
        f"{service.admin_url}/admin/keys",
        json.dumps({"name": "fuzz", "role": "admin"}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return service, json.load(answer)["secret"]


def document_of(url: str) -> dict[str, Any]:
    """The document, with the one name of a model that leads anywhere."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}) and "model" in schema.get("required", ()):
            schema["properties"]["model"] = {"enum": ["mock"]}
    return document


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("listener", ["data", "admin"])
def test_a_fuzzer_finds_no_500_and_nothing_undocumented(guarded, listener: str, tmp_path) -> None:
    """Statuses, content types and bodies are those of the document, whatever is sent; and the service goes on."""
    service, key = guarded
    url, place = (service.url, "/openapi.json") if listener == "data" else (service.admin_url, "/admin/openapi.json")
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document_of(url + place)))
    program = Path(sys.executable).parent / "schemathesis"
    command = [str(program), "run", str(file), "--url", url, "--checks", CHECKS, "--seed", "1"]
    command += ["--max-examples", "20", "--request-timeout", "20", "--phases", "coverage,fuzzing"]
    command += ["--continue-on-failure", "--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=360, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None and int(generated[1]) > 300, done.stdout
    assert "Authentication failed" not in done.stdout
    assert service.get(f"{url}/ready")[0] == 200
