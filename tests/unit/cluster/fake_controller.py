"""A controller process over fake children, for tests that kill it: argv is home, then a mode per engine."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from penstock.cluster.controller import Controller, EndRules, gateway_name
from penstock.cluster.drivers.local import Launch, LocalDriver
from penstock.cluster.reconcile import Rules
from penstock.cluster.rollout import Member
from penstock.cluster.supervise import supervise
from penstock.store.desired import DesiredStore
from penstock.wire.errors import Problem

home, modes = Path(sys.argv[1]), sys.argv[2:]
CHILD = Path(__file__).with_name("fake_child.py")


class Clock:
    def now(self) -> float:
        return time.monotonic()


def launch(member: Member, mode: str) -> Launch:
    def settings(incarnation: int) -> bytes:
        return json.dumps(
            {
                "socket": member.socket,
                "mode": mode,
                "store": str(home / "store"),
                "gateway": gateway_name(member.id, incarnation),
                "in_flight": str(home / "in_flight"),
            }
        ).encode()

    return Launch(argv=[sys.executable, str(CHILD)], settings=settings, socket=member.socket, route="/engine/load")


async def main() -> None:
    members = [Member(id="g", kind="gateway", socket=str(home / "g.sock"))]
    members += [Member(id=f"e{n}", kind="engine", socket=str(home / f"e{n}.sock")) for n in range(len(modes))]
    rules = Rules(backoff_s=0.05, crash_limit=3, first_answer_s=10.0, silence_s=1.0)
    end = EndRules(drain_timeout_s=20.0, stop_timeout_s=0.5)
    controller = Controller("m", 1, members, rules=rules, end=end, emit=lambda event: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, controller.request_stop)
    driver = LocalDriver(
        {member.id: launch(member, mode) for member, mode in zip(members, ["gateway", *modes], strict=True)},
        home,
        Clock(),
    )
    last = ""

    def show(state: object) -> None:
        nonlocal last
        line = json.dumps(
            {
                "ready": controller.state().ready,
                "stage": controller.state().stage,
                "version": controller.state().desired.version,
                "members": {m.id: [m.phase, m.pid, m.restarts] for m in controller.state().members},
            }
        )
        if line != last:
            print(line, flush=True)
        last = line

    with closing(DesiredStore(home / "store")) as store:
        await supervise(
            controller,
            driver,
            store,
            clock=Clock(),
            tell=lambda told: print(json.dumps({"tell": [told.id, told.text, *told.lines]}), flush=True),
            show=show,
            tick_s=0.02,
        )


try:
    asyncio.run(main())
except Problem as problem:
    print(json.dumps({"problem": [problem.code, problem.message]}), flush=True)
    sys.exit(1)
