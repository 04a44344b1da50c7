"""The styles of tool calls that there are.

In: a chat template; out: the style it asks for.  Adding a style is a file and a line here.
"""

from __future__ import annotations

from penstock.text.tools import hermes, listed, llama3, mistral
from penstock.text.tools.style import ToolStyle

STYLES = {style.name: style for style in (hermes.STYLE, llama3.STYLE, mistral.STYLE, mistral.NEWER_STYLE)}
LISTED = listed.STYLE


def find_style(template: str) -> ToolStyle | None:
    """The style of a checkpoint with this chat template; ``None``: it has none that is known."""
    return next((style for style in STYLES.values() if style.recognises(template)), None)
