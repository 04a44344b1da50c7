"""Chat templates: messages, errors, and the bounds on hostile ones (parity is in tests/parity)."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from typing import Any

import pytest

from penstock.text.template import ChatTemplate
from penstock.wire.errors import Problem

USER = [{"role": "user", "content": "hi"}]
ECHO = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99999) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"


def _grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


ENDLESS = {
    "nested empty loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "a lazy filter": "{% for i in range(99999) %}{% set x = range(99999) | map('string') | first %}"
    "{% for j in range(99999) | select('odd') %}{% endfor %}{% endfor %}",
    "branching macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "summed lists": "{% set l = [[1]*1000]*50 %}{% for i in range(99999) %}{% set x = l | sum(start=[]) %}{% endfor %}",
    "long comparisons": "{% set b = 'ab' * 1000000 %}{% set c = 'ab' * 999999 ~ 'ac' %}" + "{{ b in c }}" * 1500,
    "long searches": "{% set b = 'ab' * 1000000 %}" + "{% if b.count('ba') %}{% endif %}" * 1500,
}
HUGE = {
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "repetition": "{{ 'a' * 10**10 }}",
    "a list repetition": "{{ [1] * 10**10 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "repeated squaring": _grow("9", "ns.x * ns.x"),
    "a hexadecimal number": "{{ ('f' * 4000000) | int(0, 16) }}",
    "rounding": "{{ 5 | round(-1000000000) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent width argument": "{{ '%*d' % (1000000000, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1.0 }}",
    "percent key": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "percent many": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format width argument": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "format many": "{{ ('{0}' * 100000).format('x' * 1000000) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(1000000) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "constant center": "{{ 'x' | center(1000000000) }}",
    "indent": "{{ ('x\n' * 100000) | indent(1000000) }}",
    "join": "{{ range(99999) | join('x' * 100000) }}",
    "join method": "{{ ('x' * 100000).join(range(99999) | map('string')) }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 100000) }}",
    "replace of nothing": "{{ ('a' * 1000000).replace('', 'b' * 100000) }}",
    "doubling by ~": _grow("'a'", "ns.x ~ ns.x"),
    "doubling by +": _grow("'a'", "ns.x + ns.x"),
    "doubling a list": _grow("[1]", "ns.x + ns.x"),
    "a shared list": _grow("[1]", "[ns.x, ns.x]"),
    "a shared dict": _grow("[1]", "{'a': ns.x, 'b': ns.x}"),
    "shared arguments": "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ m(60, 1) }}",
    "many strings": _grow("[]", "ns.x + ['a' * 100000 ~ i]"),
    "many lists": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "many small lists": "{% for i in range(99999) %}{% for j in range(99) %}{% set x = [] %}{% endfor %}{% endfor %}",
    "a long block": "{% set x %}{% for j in range(99999) %}" + "y" * 4000 + "{% endfor %}{% endset %}",
    "a long output": "{% for i in range(99999) %}{{ 'y' * 10000 }}{% endfor %}",
    "a filtered block": "{% filter replace('a', 'bbbbbbbb') %}{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}"
    "{% endfilter %}",
    "batch": "{{ 'a' | batch(100000000, 'x') | list }}",
    "slice": "{{ 'a' | slice(1000000000) | list }}",
    "split": "{{ ('a ' * 2000000).split() | length }}",
    "splitlines": "{{ ('a\n' * 2000000).splitlines() | length }}",
    "characters": "{{ ('x' * 3000000) | sort }}",
    "escapes": "{{ ('<' * 4000000) | e | e }}",
    "JSON indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "JSON separators": "{{ ([1] * 100000) | tojson(separators=('x' * 100000, 'y')) }}",
    "JSON depth": _grow("[0]", "[ns.x] + [1] * 100 if i < 400 else ns.x").replace(
        "{{ ns.x", "{{ ns.x | tojson(indent=64)"
    ),
    "a date": "{{ strftime_now('%d' * 100000) }}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by filter": "{{ (messages | attr('__class__')).x }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "class by attribute": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "globals": "{{ raise_exception.__globals__.x }}",
    "self": "{{ self.__init__.__globals__ }}",
    "generator frame": "{{ (messages | map('first')).gi_frame.f_back }}",
    "mutation": "{{ messages.append(1) }}",
    "bytes of an integer": "{{ (1).to_bytes(1000000000) }}",
    "encode": "{{ 'a'.encode() }}",
    "fromkeys": "{{ {}.fromkeys(range(99999)) }}",
    "namespace attribute": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
}


def _render(source: str, messages: list[dict[str, Any]] = USER, **kwargs: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize("name", [*ENDLESS, *HUGE, *ESCAPES])
def test_a_hostile_template_ends_in_an_error(name: str) -> None:
    """Each ends in template_error, within its time bound plus what one bounded step takes."""
    limit_s = 0.2 if name in ENDLESS else 3.0
    template = ChatTemplate((ENDLESS | HUGE | ESCAPES)[name], {}, time_limit_s=limit_s, clock=time.thread_time)
    start = time.thread_time()
    with pytest.raises(Problem) as refused:
        template.render(USER, add_generation_prompt=True)
    assert refused.value.code == "template_error"
    assert ("ran for more than" in refused.value.message) == (name in ENDLESS)
    assert time.thread_time() - start < 5


def test_hostile_templates_stay_within_memory() -> None:
    """A process that renders every hostile template grows by less than 160 MiB, its imports apart."""
    program = """
import resource, runpy, sys
from penstock.wire.errors import Problem
tests = runpy.run_path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for source in [*tests["ENDLESS"].values(), *tests["HUGE"].values()]:
    try:
        tests["ChatTemplate"](source, {}, time_limit_s=0.3).render(tests["USER"], add_generation_prompt=True)
    except Problem:
        continue
    sys.exit("rendered: " + source)
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 160


def test_the_deadline_is_that_of_the_clock() -> None:
    """Time is read from the given clock alone: when it leaps, the rendering ends."""
    ticks = iter(range(100))
    template = ChatTemplate(ECHO, {}, time_limit_s=5.0, clock=lambda: float(next(ticks)))
    with pytest.raises(Problem, match="more than 5 s"):
        template.render(USER * 10, add_generation_prompt=True)


def test_a_bound_leaves_the_template_usable() -> None:
    """After a rendering that failed, the same template renders the next request from a full account."""
    template = ChatTemplate("{{ 'x' * n }}", {}, output_limit=1000)
    for _ in range(3):
        with pytest.raises(Problem, match="more than 1000 characters"):
            template.render(USER, add_generation_prompt=True, n=1500)
        assert template.render(USER, add_generation_prompt=True, n=1000) == "x" * 1000


def test_a_long_conversation_renders() -> None:
    """Two thousand messages, a megabyte, and a template that accumulates stay within the bounds."""
    source = (
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.content | trim] %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "0123456789" * 50}] * 2000
    # The processor's time, so that a machine that is busy with other tests does not count.
    template = ChatTemplate(source + "{{ ns.l | join }}" + ECHO, {}, clock=time.thread_time)
    assert len(template.render(messages, add_generation_prompt=True)) == 2000 * 506 + 2000 * 500


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ x | urlize }}",
        "{% include 'x' %}",
        "{{ " + "(" * 5000 + " }}",
        "x" * 200_000,
        "{{ 1" + "0" * 5000 + " }}",
    ],
    ids=["syntax", "filter", "include", "nesting", "size", "number"],
)
def test_a_template_that_cannot_be_compiled_names_its_file(source: str) -> None:
    """What is wrong with the source is known at load and says where."""
    with pytest.raises(Problem, match=r"dir/chat_template\.jinja.*cannot be compiled") as refused:
        ChatTemplate(source, {}, origin="dir/chat_template.jinja")
    assert refused.value.code == "checkpoint_invalid"


def test_a_refusal_is_in_the_template_s_words() -> None:
    """raise_exception becomes template_error with its message; other failures name the template's line."""
    with pytest.raises(Problem) as refused:
        _render("{{ raise_exception('Roles must alternate') }}")
    assert (refused.value.code, refused.value.message) == ("template_error", "Roles must alternate")
    with pytest.raises(Problem, match="line 3") as refused:
        _render("\n\n{{ messages[0].nothing.more }}")
    assert refused.value.code == "template_error"


def test_text_parts_are_joined() -> None:
    """A content list of text parts reaches the template as one string; null stays null; the caller's list is kept."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert _render(ECHO, messages) == "<user>ab<assistant>None"
    assert messages[0]["content"] is parts


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": 5},
        {"role": 5, "content": "a"},
        {"content": "a"},
        "a",
    ],
)
def test_a_message_that_is_no_text_is_refused(message: Any) -> None:
    """Other parts and wrong types are invalid_value and name the message."""
    with pytest.raises(Problem, match=r"messages\[1\]") as refused:
        _render(ECHO, [*USER, message])
    assert (refused.value.code, refused.value.param) == ("invalid_value", "messages")


@pytest.mark.parametrize(
    ("source", "messages", "code"),
    [
        (ECHO, [], "invalid_value"),
        (ECHO, [{"role": "user", "content": None}], "invalid_value"),
        ("fixed", USER, "template_error"),
        ("{{ messages[0].content[:1] }}", USER, "template_error"),
    ],
)
def test_a_final_message_that_cannot_be_continued_is_refused(source: str, messages: Any, code: str) -> None:
    """No message, no text, or a template that drops it: an error, never a prompt without the message."""
    with pytest.raises(Problem) as refused:
        ChatTemplate(source, {}).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert refused.value.code == code


def test_variables_cannot_replace_the_messages() -> None:
    """Reserved names among the variables, and two contradicting modes, are the caller's mistake."""
    with pytest.raises(Problem, match="messages"):
        ChatTemplate(ECHO, {}).render(USER, add_generation_prompt=True, messages=[])
    with pytest.raises(Problem, match="exclude"):
        _render(ECHO, continue_final_message=True)


def test_dates_come_from_the_given_clock() -> None:
    """strftime_now formats what ``now`` answers."""
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2024, 7, 26))
    assert template.render([], add_generation_prompt=True) == "26 Jul 2024"
