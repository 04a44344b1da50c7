"""``penstock chat``: talk to a served model in the terminal.

In: lines from the terminal, or all of standard input as one message when it is not one; out: the answer as it streams.
Ctrl-C while answering closes the stream, so that the server stops working on it; what had arrived stays in the history.
Exit code 1 on an error when piped, 130 when interrupted there.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.config.settings import API_KEY, DEFAULT_URL
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    import asyncio

    from penstock.loadgen.stream import Chunk

HELP = """/clear       forget the conversation
/regenerate  drop the last answer and ask again
/help        this list
/exit        leave (also /quit and Ctrl-D)
Ctrl-C       stop an answer; what has arrived stays in the conversation"""


def register(app: typer.Typer) -> None:
    """Add ``chat``."""
    app.command("chat")(chat)


def chat(
    url: Annotated[str, typer.Option(help="Any OpenAI-compatible endpoint.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Default: the first of /v1/models.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="For answers that can be repeated.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar=API_KEY, help="Sent as a bearer token.")] = None,
) -> None:
    """Chat with a served model; reads one message from standard input when piped."""
    import asyncio

    from penstock.loadgen.client import reach
    from penstock.loadgen.stream import api_base

    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    with asyncio.Runner() as runner:
        base = api_base(url)
        name = runner.run(reach(base, api_key, model))
        conversation = Conversation(base, name, api_key, {k: v for k, v in sampling.items() if v is not None}, system)
        if sys.stdin.isatty():
            _Dialogue(conversation, runner).run()
        else:
            _answer_once(conversation, runner)


@dataclass(slots=True)
class Answer:
    """One answer so far.  ``output_tokens`` comes from usage, else it is the number of chunks."""

    text: str = ""
    output_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    finish_reason: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first; ``None`` for fewer than two."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2 or self.last_s <= self.first_s:
            return None
        return (self.output_tokens - 1) / (self.last_s - self.first_s)


@dataclass(slots=True)
class Conversation:
    """A history of messages at one endpoint.  A question enters it together with its answer, whole or cut short."""

    url: str
    model: str
    api_key: str | None
    sampling: dict[str, float]
    system: str | None
    turns: list[tuple[str, str]] = field(default_factory=list)

    def body(self, question: str) -> dict[str, object]:
        """The request for the next answer."""
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        for asked, answered in self.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": question})
        return {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | self.sampling

    async def ask(
        self,
        question: str,
        answer: Answer,
        show: Callable[[str], None],
        think: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Stream one answer into ``answer`` and to ``show``, its reasoning to ``think``.  Cancelling closes the stream.

        Raises ``server_unreachable`` or ``endpoint_error``; then, as on cancellation, no turn is added.
        """
        num_chunks, thinks = 0, False
        async with contextlib.aclosing(self._chunks(question)) as chunks:
            async for chunk in chunks:
                if chunk.error is not None:
                    code = chunk.error.name("stream_error")
                    raise Problem("endpoint_error", f"The answer broke off: {chunk.error.message} ({code})")
                if chunk.text or chunk.reasoning:
                    num_chunks += 1
                    answer.last_s = time.perf_counter()
                    answer.first_s = answer.first_s or answer.last_s
                    answer.output_tokens = num_chunks
                if chunk.reasoning:
                    thinks = True
                    think(chunk.reasoning)
                if chunk.text:
                    if thinks and not answer.text:
                        think("\n\n")
                    answer.text += chunk.text
                    show(chunk.text)
                answer.finish_reason = answer.finish_reason or chunk.finish_reason
                if chunk.usage is not None:
                    answer.output_tokens = chunk.usage.completion_tokens
        if answer.finish_reason is None:
            raise Problem("endpoint_error", "The answer broke off: the stream ended without a finish_reason.")

    async def _chunks(self, question: str) -> AsyncGenerator[Chunk, None]:
        import aiohttp
        import msgspec

        from penstock.loadgen import stream

        reader = stream.ChunkReader()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=stream.headers(self.api_key)) as session,
                session.post(f"{self.url}/chat/completions", data=stream.encode(self.body(question))) as reply,
            ):
                if reply.status != 200:
                    refused = stream.error_of(reply.status, await reply.read())
                    code = refused.name(f"http_{reply.status}")
                    message = f"{refused.message} ({reply.status} {code})"
                    raise Problem("endpoint_error", message, hint=stream.hint_for(reply.status))
                async for data in reply.content.iter_any():
                    for chunk in reader.feed(data):
                        yield chunk
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Problem("server_unreachable", f"Lost {self.url}: {reason}.") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem("endpoint_error", f"The answer is not an OpenAI stream: {error}.") from error


class _Dialogue:
    """The interactive loop.  Stays until told to leave: an error ends an answer, not the dialogue."""

    def __init__(self, conversation: Conversation, runner: asyncio.Runner) -> None:
        self._conversation = conversation
        self._runner = runner

    def run(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines and remembers them once this is imported)
        self._note(f"{self._conversation.model} at {self._conversation.url}; /help lists the commands")
        hinted = False
        while True:
            try:
                line = input("> ").strip()
                line.encode()
            except EOFError:
                print()
                return
            except UnicodeError:
                self._note("that line is not UTF-8 text")
                continue
            except KeyboardInterrupt:
                print()
                if hinted:
                    return
                hinted = True
                self._note("Ctrl-D or /exit leaves, and so does another Ctrl-C")
                continue
            hinted = False
            if line in ("/exit", "/quit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line)

    def _command(self, line: str) -> None:
        turns = self._conversation.turns
        if line == "/help":
            print(HELP)
        elif line == "/clear":
            turns.clear()
            self._note("the conversation is forgotten")
        elif line == "/regenerate" and turns:
            last = turns.pop()
            if not self._ask(last[0]):
                turns.append(last)
        elif line == "/regenerate":
            self._note("there is no answer yet")
        else:
            self._note(f"there is no command {line}; /help lists them")

    def _ask(self, question: str) -> bool:
        """Whether there is an answer, if only a part of one."""
        from penstock.cli.console import print_problem

        answer = Answer()
        note = ""
        try:
            self._runner.run(self._conversation.ask(question, answer, _show, _think))
            note = _speed(answer)
        except KeyboardInterrupt:
            note = "stopped; the part above stays in the conversation" if answer.text else "stopped"
        except Problem as problem:
            print()
            print_problem(problem)
            self._note("the question is not in the conversation; ask again when that is mended")
            return False
        print()
        self._note(note)
        if answer.text or answer.finish_reason:
            self._conversation.turns.append((question, answer.text))
            return True
        return False

    def _note(self, text: str) -> None:
        from rich.console import Console

        Console(highlight=False).print(text, style="dim", markup=False)


def _answer_once(conversation: Conversation, runner: asyncio.Runner) -> None:
    try:
        question = sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError as error:
        raise Problem("invalid_value", f"Standard input is not UTF-8: {error}.") from None
    if not question:
        raise Problem("invalid_value", "Standard input is empty; pipe a message, or run this in a terminal.")
    answer = Answer()
    try:
        runner.run(conversation.ask(question, answer, _show))
    finally:
        if answer.text and not answer.text.endswith("\n"):
            print(flush=True)


def _think(text: str) -> None:
    """Print reasoning dimmed, as it comes."""
    from rich.console import Console

    shown = "".join(c for c in text if c in "\n\t" or c.isprintable())
    Console(highlight=False, soft_wrap=True).print(shown, style="dim", markup=False, emoji=False, end="")
    sys.stdout.flush()


def _show(text: str) -> None:
    """Print text as it comes.  On a terminal, control characters are dropped: a model must not drive the terminal."""
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or c.isprintable())
    sys.stdout.write(text)
    sys.stdout.flush()


def _speed(answer: Answer) -> str:
    speed = f", {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s is not None else ""
    cut = ", cut at max_tokens" if answer.finish_reason == "length" else ""
    return f"{answer.output_tokens} tokens{speed}{cut}"
