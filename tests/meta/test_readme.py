"""The code of the README runs as it stands."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

README = Path(__file__).parent.parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[Any]:
    """Every ```python block, by the line on which it starts, compiled to show the lines of the README."""
    text = README.read_text() if README.exists() else ""
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        found.append(pytest.param("\n" * (line - 1) + match[1], id=f"line {line}"))
    return found or [pytest.param("", marks=pytest.mark.skip(reason="the README has no ```python block yet"))]


@pytest.mark.parametrize("code", blocks())
def test_block(code: str) -> None:
    """Each block by itself, in a namespace of its own, with jax as its reader has it: optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
