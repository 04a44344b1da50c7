"""A child process in miniature: settings from standard input's first line, LOAD on a Unix socket, ends as told.

Settings: {"socket", "mode"}; modes: ready, silent, stubborn (ignores SIGTERM), crash, problem, failed, gateway.
A gateway also needs {"store", "gateway"} and acknowledges every state with the number in the file {"in_flight"}.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path

settings = json.loads(sys.stdin.buffer.readline())
mode = settings["mode"]


def lifeline() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


def acknowledge() -> None:
    from penstock.config.desired import Acknowledgement
    from penstock.store.desired import DesiredStore

    store = DesiredStore(settings["store"])
    while True:
        in_flight = int(Path(settings["in_flight"]).read_text() or 0)
        said = Acknowledgement(
            gateway=settings["gateway"], version=store.read().version, in_flight=in_flight, at=time.time()
        )
        store.acknowledge(said)
        time.sleep(0.02)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        load: dict[str, object] = {"phase": "ready"}
        if mode == "failed":
            load = {"phase": "failed", "problem": {"type": "failed", "code": "checkpoint_invalid", "message": "torn"}}
        body = json.dumps(load).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


print(f"fake child {mode} speaks", flush=True)
if mode == "crash":
    sys.exit("crashed on purpose")
if mode == "problem":
    failed = {"type": "failed", "code": "checkpoint_invalid", "message": "no such tensor"}
    print("PENSTOCK_PROBLEM " + json.dumps(failed), file=sys.stderr)
    sys.exit(78)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: os._exit(0))
threading.Thread(target=lifeline, daemon=True).start()
if mode == "gateway":
    threading.Thread(target=acknowledge, daemon=True).start()
if mode == "silent":
    signal.pause()
with contextlib.suppress(FileNotFoundError):
    os.unlink(settings["socket"])  # noqa: PTH108
Server(settings["socket"], Handler).serve_forever()
