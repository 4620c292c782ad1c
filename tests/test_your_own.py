"""docs/your-own.md runs as it stands, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "your-own.md"


def test_every_block_runs_and_says_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    told = []
    for i, block in enumerate(blocks):
        exec(compile(block, f"<block {i}>", "exec"), names)
        told.append(capsys.readouterr().out)
    assert len(blocks) >= 7
    everything = "".join(told)
    for word in ("settled", "asymmetry", "truncation", "certificate", "VERDICT pass"):
        assert word in everything
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]
