"""Importing the room stays fast: libraries that take seconds are imported where they are used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hf_clidmu.data


HEAVY = {"datasets", "pandas", "sklearn", "timm", "torchvision", "transformers"}
MODULES = sorted(Path(hf_clidmu.data.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    imported: set[str] = set()
    # Imports under `if TYPE_CHECKING` and inside functions are not at the top level of the tree.
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported.add(node.module.split(".")[0])
    assert not imported & HEAVY


def test_public_names_are_there() -> None:
    assert len(set(hf_clidmu.data.__all__)) == len(hf_clidmu.data.__all__)
    assert all(hasattr(hf_clidmu.data, name) for name in hf_clidmu.data.__all__)
