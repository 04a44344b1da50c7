"""Chat templates of real releases: the text they make, also with transformers, and what is found in them.

The templates are written here so that they render what the releases' own do; a few texts are pinned as they are known.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from penstock.text.answer import AnswerFormat
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import ToolUse
from penstock.wire.errors import Problem

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

DIRECTORY = Path(__file__).parents[1] / "support" / "chat_templates"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.jinja"))
BOS = {
    "llama31": "<|begin_of_text|>",
    "gemma2": "<bos>",
    "gemma3": "<bos>",
    "qwen25": "",
    "qwen3": "",
    "phi3": "",
    "phi4_mini": "",
}
EOS = {"phi3": "<|endoftext|>", "phi4_mini": "<|endoftext|>"}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi, ünï <b>\n there"}
ANSWER = {"role": "assistant", "content": "Hello."}
MORE = {"role": "user", "content": "More?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "Wétter & <x>", "parameters": PARAMETERS}}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": {"city": "Zürich", "n": [1.5]}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcDEF123", "name": "f", "content": "21"}
THOUGHT = {"role": "assistant", "content": "Hello.", "reasoning_content": "They greet."}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "many": ([USER, ANSWER, MORE], {}),
    "system and many": ([SYSTEM, USER, ANSWER, MORE], {}),
    "tools": ([USER], {"tools": TOOLS}),
    "system and tools": ([SYSTEM, USER], {"tools": TOOLS}),
    "call": ([USER, CALL, RESULT], {"tools": TOOLS}),
    "two results": ([USER, CALL, RESULT, RESULT, ANSWER, MORE], {"tools": TOOLS}),
    "two calls": ([USER, CALL | {"tool_calls": CALL["tool_calls"] * 2}, RESULT, RESULT], {"tools": TOOLS}),  # type: ignore[operator]
    "reasoning": ([USER, THOUGHT, MORE], {}),
    "reasoning of a call": ([USER, CALL | {"reasoning_content": "hm"}, RESULT], {"tools": TOOLS}),
    "no thinking": ([USER], {"enable_thinking": False}),
    "a date": ([USER], {"date_string": "1 Jan 2025"}),
    "roles out of order": ([USER, USER], {}),
}


def source_of(name: str) -> str:
    return (DIRECTORY / f"{name}.jinja").read_text()


def tokens_of(name: str) -> dict[str, str]:
    return {"bos_token": BOS.get(name, "<s>"), "eos_token": EOS.get(name, "</s>")}


def ours(name: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    return ChatTemplate(source_of(name), tokens_of(name)).render(messages, **variables)


def theirs(name: str, messages: list[dict[str, Any]], **variables: Any) -> tuple[str, str | None]:
    """What transformers renders, or the words with which the template fails."""
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source_of(name), **tokens_of(name), **variables
        )
    except Exception as error:  # transformers lets the template's own error through
        return "", str(error)
    return texts[0], None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_conversation_is_rendered_as_transformers_does(name: str, conversation: str) -> None:
    """With and without a generation prompt: the same text, or both refuse."""
    messages, variables = CONVERSATIONS[conversation]
    for prompt in (False, True):
        text, words = theirs(name, messages, add_generation_prompt=prompt, **variables)
        if words is None:
            assert ours(name, messages, add_generation_prompt=prompt, **variables) == text
            continue
        with pytest.raises(Problem, match=re.escape(words)) as refused:
            ours(name, messages, add_generation_prompt=prompt, **variables)
        assert refused.value.code == "template_error"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", ["Once upon", "Once upon ", "<think>\nso"])
def test_a_final_message_goes_on_as_at_transformers(name: str, ending: str) -> None:
    """The prompt ends with the open message."""
    messages = [USER, {"role": "assistant", "content": ending}]
    text, words = theirs(name, messages, continue_final_message=True)
    assert words is None
    assert ours(name, messages, add_generation_prompt=False, continue_final_message=True) == text


QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "f", "description": "Wétter & <x>", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n</tools>\n\n'
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
HELLO = "Hi, ünï <b>\n there"
ARGUMENTS = '{"city": "Zürich", "n": [1.5]}'
TOOL_LINE = json.dumps(TOOLS, ensure_ascii=False)
PINNED: list[tuple[str, str, str]] = [
    (
        "llama2",
        "system and many",
        f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{HELLO} [/INST] Hello. </s><s>[INST] More? [/INST]",
    ),
    (
        "llama31",
        "system",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{HELLO}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "llama31",
        "call",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON for a "
        "function call with its proper arguments that best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
        f"{json.dumps(TOOLS[0], ensure_ascii=False, indent=4)}\n\n{HELLO}<|eot_id|>"
        f'<|start_header_id|>assistant<|end_header_id|>\n\n{{"name": "f", "parameters": {ARGUMENTS}}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"21"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("mistral_v3", "system and many", f"<s>[INST] {HELLO}[/INST] Hello.</s>[INST] Be brief.\n\nMore?[/INST]"),
    (
        "mistral_v3",
        "call",
        f"<s>[AVAILABLE_TOOLS] {TOOL_LINE}[/AVAILABLE_TOOLS][INST] {HELLO}[/INST]"
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {ARGUMENTS}, "id": "abcDEF123"}}]</s>'
        '[TOOL_RESULTS] {"content": 21, "call_id": "abcDEF123"}[/TOOL_RESULTS]',
    ),
    ("mistral_nemo", "many", f"<s>[INST]{HELLO}[/INST]Hello.</s>[INST]More?[/INST]"),
    (
        "qwen25",
        "one",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{HELLO}<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwen25",
        "call",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
        f"{QWEN_TOOLS}<|im_start|>user\n{HELLO}<|im_end|>\n"
        f'<|im_start|>assistant\n<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwen3",
        "system and tools",
        f"<|im_start|>system\nBe brief.\n\n{QWEN_TOOLS}<|im_start|>user\n{HELLO}<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwen3",
        "reasoning of a call",
        f"<|im_start|>system\n{QWEN_TOOLS}<|im_start|>user\n{HELLO}<|im_end|>\n<|im_start|>assistant\n"
        f'<think>\nhm\n</think>\n\n<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwen3",
        "reasoning",
        f"<|im_start|>user\n{HELLO}<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwen3",
        "no thinking",
        f"<|im_start|>user\n{HELLO}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    ("mixtral", "many", f"<s>[INST] {HELLO} [/INST]Hello.</s>[INST] More? [/INST]"),
    (
        "gemma2",
        "many",
        f"<bos><start_of_turn>user\n{HELLO}<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nMore?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "gemma3",
        "system",
        f"<bos><start_of_turn>user\nBe brief.\n\n{HELLO}<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "phi3",
        "system and many",
        f"<|system|>\nBe brief.<|end|>\n<|user|>\n{HELLO}<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\nMore?<|end|>\n<|assistant|>\n",
    ),
    ("phi4_mini", "system", f"<|system|>Be brief.<|end|><|user|>{HELLO}<|end|><|assistant|>"),
]


@pytest.mark.parametrize(("name", "conversation", "text"), PINNED, ids=[f"{n}-{c}" for n, c, _ in PINNED])
def test_what_a_release_renders_is_pinned(name: str, conversation: str, text: str) -> None:
    """Known texts, with a generation prompt."""
    messages, variables = CONVERSATIONS[conversation]
    assert ours(name, messages, add_generation_prompt=True, **variables) == text


@pytest.mark.parametrize(
    ("name", "conversation", "words"),
    [
        ("gemma2", "system", "System role not supported"),
        ("mixtral", "system", "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("llama2", "roles out of order", "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("llama31", "two calls", "This model only supports single tool-calls at once!"),
    ],
)
def test_a_release_refuses_in_its_own_words(name: str, conversation: str, words: str) -> None:
    """What a template does not take is a template_error with what it says."""
    messages, variables = CONVERSATIONS[conversation]
    with pytest.raises(Problem) as refused:
        ours(name, messages, add_generation_prompt=True, **variables)
    assert (refused.value.code, refused.value.message) == ("template_error", words)


FOUND = {
    "llama2": (None, None),
    "llama31": (None, "llama3"),
    "mistral_v3": (None, "mistral"),
    "mistral_nemo": (None, "mistral"),
    "mistral_args": ("[THINK]", "mistral-args"),
    "qwen25": (None, "hermes"),
    "qwen3": ("<think>", "hermes"),
    "mixtral": (None, None),
    "gemma2": (None, None),
    "gemma3": (None, None),
    "phi3": (None, None),
    "phi4_mini": (None, None),
}


def loaded(directory: Path, name: str) -> Tokenizer:
    """A small tokenizer with the release's template and marks."""
    from tiny_tokenizers import byte_level, sentencepiece

    tokenizer = byte_level() if name in ("llama31", "qwen25", "qwen3", "phi4_mini") else sentencepiece()
    special = ["<|im_start|>", "<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|end|>", "<end_of_turn>"]
    tokenizer.add_special_tokens([*special, *(text for text in tokens_of(name).values() if text)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: v for k, v in tokens_of(name).items() if v}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(source_of(name))
    return Tokenizer.load(directory)


@pytest.mark.parametrize("name", NAMES)
def test_thinking_and_calls_are_found(name: str, tmp_path: Path) -> None:
    """Each release's marks and style, and none where it has none."""
    answers = AnswerFormat.of(loaded(tmp_path, name), reasoning="auto", tools="auto")
    found = answers.thinking.open if answers.thinking else None, answers.style.name if answers.style else None
    assert found == FOUND[name]


@pytest.mark.parametrize("name", [name for name, (_, style) in FOUND.items() if style])
def test_a_call_that_a_template_shows_is_read_back(name: str, tmp_path: Path) -> None:
    """What a template writes of an earlier call is what the style reads as one."""
    tokenizer = loaded(tmp_path, name)
    answers = AnswerFormat.of(tokenizer, reasoning="auto", tools="auto")
    messages: list[dict[str, Any]] = [USER, CALL]
    whole = ours(name, messages, add_generation_prompt=False, tools=TOOLS)
    prompt = ours(name, messages[:-1], add_generation_prompt=True, tools=TOOLS)
    assert whole.startswith(prompt)
    output = whole[len(prompt) :]
    for end in ("</s>", "<|im_end|>\n", "<|eot_id|>"):
        output = output.removesuffix(end)
    parser = answers.parser(tokenizer, prompt, use=ToolUse(tools=TOOLS, key="k"))
    parts, rest = parser.push(output), parser.flush()
    [call] = parts.calls
    assert (parts.text + rest.text, call.name, json.loads(call.arguments)) == (
        "",
        "f",
        {"city": "Zürich", "n": [1.5]},
    )


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_the_token_ids_of_transformers(name: str, tmp_path: Path) -> None:
    """From messages to ids through a whole tokenizer of the family's kind, special tokens once and not twice."""
    from transformers import AutoTokenizer

    mine = loaded(tmp_path, name)
    reference = AutoTokenizer.from_pretrained(str(tmp_path))
    for conversation in ("one", "many", "call"):
        messages, variables = CONVERSATIONS[conversation]
        if "tools" in variables and FOUND[name][1] is None:
            continue
        expected = reference.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **variables
        )["input_ids"]
        assert mine.chat_template is not None
        text = mine.chat_template.render(messages, add_generation_prompt=True, **variables)
        assert mine.encode(text, add_special_tokens=False) == expected
