"""The scripts of recipes/ as modules."""

import importlib
import sys
from pathlib import Path
from typing import Any


RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(name: str, folder: str = "") -> Any:
    """A script of recipes/ as a module; those of a folder find one another as they do when they are run."""
    sys.path.insert(0, str(RECIPES / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPES / folder))
