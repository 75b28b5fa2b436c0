"""Model cards: what a recipe measured, as facts of a card; run as a script, it renders the examples in model_cards/.

python recipes/cards.py            # render model_cards/*.md anew, from the committed results of recipes/benchmarks
python recipes/cards.py --check    # say which are not up to date, change nothing
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.model_card import CardFacts, Scores, render_card
from hf_clidmu.run_facts import facts_of_settings


REPOSITORY = Path(__file__).resolve().parents[1]
STATES = {
    "last": "last step",
    "selected": "selected by CLID",
    "ensemble": "ensemble of the best by CLID",
    "oracle_best": "oracle: best by test labels",
}
# Card -> the file of results, the corpus in it, and what people call the data.
EXAMPLES = {
    "image-classification.md": ("digits.json", "digits, 40 % symmetric", "Handwritten digits of scikit-learn"),
    "text-classification.md": ("text.json", "TREC, 46 % wrong (rules)", "TREC questions, labels by rules"),
}


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """Fields of [`CardFacts`] that follow from the results of recipes/train.py, or from a cell of a comparison."""
    noise = results.get("noise") or {}
    return {
        "split": "test",
        "results": [
            Scores(STATES[name], _without_prefix(scores), name == "selected")
            for name, scores in results["results"].items()
        ],
        "evaluations": [
            {"step": entry["step"], "clid": entry["clid"], **_without_prefix(entry)} for entry in results["evaluations"]
        ],
        "noise_kind": {"measured": "by comparison with clean labels"}.get(noise.get("kind"), noise.get("kind")),
        "noise_rate": noise.get("achieved_rate"),
        **{
            name: results[name]
            for name in ("suspects_auroc", "train_seconds", "peak_memory_mib", "num_train_samples", "versions")
        },
    }


def example(name: str) -> CardFacts:
    """The facts of an example: of the first seed of CLID-MU on its corpus."""
    file, corpus, title = EXAMPLES[name]
    cells = json.loads((REPOSITORY / "recipes" / "benchmarks" / file).read_text(encoding="utf8"))["cells"]
    cell = next(cell for cell in cells if (cell["corpus"], cell["method"]) == (corpus, "CLID-MU (vri)"))
    recipe = REPOSITORY / cell["arguments"]["config"]
    settings = {**yaml.safe_load(recipe.read_text(encoding="utf8")), "seed": cell["seed"]}
    known = CLIDMUConfig.__dataclass_fields__
    config = CLIDMUConfig(**{key: _number(value) for key, value in settings.items() if key in known}, use_cpu=True)
    network = str(settings["model"])
    return CardFacts(
        model_name=recipe.stem.replace("_", "-"),
        repo_id=f"you/{recipe.stem.replace('_', '-')}",
        modality=name.split("-")[0],
        weights=cell.get("weights") or f"step {selected_step(cell)}, selected by CLID",
        base_model="sentence-transformers/all-MiniLM-L6-v2" if "MINILM" in network else network,
        from_scratch="MINILM" not in network,
        dataset_name=title,
        **facts_of_settings(config),
        **measured(cell),
    )


def selected_step(cell: dict[str, Any]) -> int:
    """The step of the state that was selected: the last one with its figures."""
    selected = cell["results"]["selected"]
    return max(entry["step"] for entry in cell["evaluations"] if selected.items() <= entry.items())


def main(arguments: list[str] | None = None) -> None:
    """Render or check the examples."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if an example is not up to date")
    options = parser.parse_args(arguments)
    stale = []
    for name in EXAMPLES:
        path, text = REPOSITORY / "model_cards" / name, str(render_card(example(name)))
        if not path.exists() or path.read_text(encoding="utf8") != text:
            stale.append(name)
            if not options.check:
                path.write_text(text, encoding="utf8")
    if options.check and stale:
        sys.exit(f"error: not up to date: {', '.join(stale)}; run python recipes/cards.py")


def _without_prefix(scores: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("test_"): value for name, value in scores.items() if name.startswith("test_")}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


if __name__ == "__main__":
    main()
