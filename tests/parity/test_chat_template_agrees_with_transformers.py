"""Our rendering of chat templates is the text that ``transformers`` renders."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from penstock.text.template import ChatTemplate

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{ content }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments | tojson(indent=2) ~ '}' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{% for message in messages %}
    {% if loop.first or message.role != loop.previtem.role %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {% else %}
        {{- message | items | list | length }}{{ message.keys() | join('/') }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- macro inst(text) %}[INST] {{ text }}[/INST]{% endmacro -%}
{{ bos_token }}{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{ inst(message['content']) }}
    {%- elif message['role'] == 'assistant' -%}
        {{ ' ' + message['content'] | upper | replace('A', '<a>') + eos_token }}
    {%- else -%}
        {%- continue -%}
    {%- endif -%}
{%- endfor -%}
({{ users | length }}{{ users | map(attribute='content') | join(', ') | title | indent(2) }})
{% filter upper %}{% with x = ['b', 'a'] | sort | first %}{{ x }}{% endwith %}{% endfilter %}
{{ '%s and %05.1f' % ('x', 2) }} {{ '{:>4}'.format(7) }} {{ {'b': [1, 2.5, none], 'a': 'é<'} | tojson }} {{ [1, 'a'] }}
{%- for k, v in {'z': 1, 'y': 2} | dictsort %}{{ k }}={{ v }};{% endfor %}{{ range(3) | sum }}{{ missing }}
{{ 7 // 2 ** 2 }}
"""

PLAIN = [{"role": "user", "content": "  Hi, ünï <b>\n\nthere  "}]
LONG = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "<think>hm</think>\n\nan answer",
        "tool_calls": [{"name": "f", "arguments": {"x": [1]}}],
    },
    {"role": "user", "content": "b\n"},
    {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é & <x>", "parameters": {"type": "object"}}}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", [CHATML, LLAMA, MISTRAL], ids=["chatml", "llama", "mistral"])
@pytest.mark.parametrize("messages", [PLAIN, LONG], ids=["one", "many"])
@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS, "enable_thinking": False}], ids=["plain", "variables"])
def test_rendering_is_that_of_transformers(
    source: str, messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    """With and without a generation prompt, the text is the same to the character."""
    for add_generation_prompt in (False, True):
        theirs, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=add_generation_prompt, **TOKENS, **variables
        )
        ours = ChatTemplate(source, TOKENS).render(messages, add_generation_prompt=add_generation_prompt, **variables)
        assert ours == theirs[0]


@pytest.mark.parametrize(
    ("source", "ending"), list(itertools.product([CHATML, LLAMA], ["Once upon", "Once upon ", "a\n"]))
)
def test_an_open_final_message_is_that_of_transformers(source: str, ending: str) -> None:
    """A message to be continued ends where transformers ends it, its trailing space as the template treats it."""
    messages = [*PLAIN, {"role": "assistant", "content": ending}]
    theirs, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=source, continue_final_message=True, **TOKENS
    )
    ours = ChatTemplate(source, TOKENS).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert ours == theirs[0]
