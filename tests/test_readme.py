"""What the README shows is what runs."""

import re
from pathlib import Path

import pytest


README = Path(__file__).parent.parent / "README.md"


def _quickstart():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf8"), flags=re.DOTALL)
    return block


def test_the_quickstart_is_short():
    assert sum(bool(line.strip()) for line in _quickstart().splitlines()) <= 12


def test_the_quickstart_runs_as_it_stands_and_its_model_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(_quickstart(), str(README), "exec"), names)  # noqa: S102
    assert "given_label" in capsys.readouterr().out
    from transformers import pipeline

    classify = pipeline("image-classification", "outputs/quickstart")
    image = names["corpus"].test[0]["image"].convert("RGB")
    assert {answer["label"] for answer in classify(image)} <= set(names["corpus"].label_names)
    assert (tmp_path / "outputs/quickstart/ledger.parquet").is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README.read_text(encoding="utf8")))))
def test_links_lead_somewhere(path):
    assert (README.parent / path).exists()
