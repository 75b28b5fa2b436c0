"""Several states of one run as one classifier: a folder or repository with its members, and a pipeline over them.

The model at the top is the best member, so that whoever knows nothing of ensembles loads that one. Members lie in
`member-0`, `member-1`, ..., best first; all share the processor at the top.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from torch import nn

from hf_clidmu.files import read_json, write_json
from hf_clidmu.snapshots import Snapshots


INDEX_NAME = "ensemble.json"
_FORMAT = 1
_MOST = 100


def save_members(folder: str | Path, model: nn.Module, snapshots: Snapshots) -> int:
    """Write the snapshots that are kept as members, and the list of them last.

    Args:
        folder: of the model that stands for them all.
        model: their architecture; holds its own weights again afterwards.
        snapshots: of the run.

    Returns:
        How many there are.
    """
    folder, steps = Path(folder), []
    with closing(snapshots.visited(model)) as visits:
        for number, snapshot in enumerate(visits):
            model.save_pretrained(folder / f"member-{number}")  # type: ignore[operator]
            steps.append(snapshot.step)
    write_json(folder / INDEX_NAME, {"version": _FORMAT, "members": len(steps), "steps": steps})
    return len(steps)


class EnsemblePipeline:
    """A classification pipeline whose scores are the mean of its members' probabilities.

    Args:
        path_or_repo: folder of an ensemble, or its id on the Hub.
        task: `text-classification` or `image-classification`.
        revision: branch, tag or commit on the Hub.
        token: of the Hub; None takes the one that the user is logged in with.
        kwargs: of `transformers.pipeline`, such as `device`.

    Raises:
        ValueError: for another task, or when there is no ensemble.
    """

    def __init__(
        self, path_or_repo: str | Path, task: str, revision: str | None = None, token: str | None = None, **kwargs: Any
    ):
        import transformers

        build: Any = transformers.pipeline

        classes: dict[str, tuple[Any, Any, str]] = {
            "text-classification": (
                transformers.AutoModelForSequenceClassification,
                transformers.AutoTokenizer,
                "tokenizer",
            ),
            "image-classification": (
                transformers.AutoModelForImageClassification,
                transformers.AutoImageProcessor,
                "image_processor",
            ),
        }
        if task not in classes:
            raise ValueError(f"task must be one of {', '.join(classes)}, got '{task}'")
        model_class, processor_class, name = classes[task]
        hub = {"revision": revision, "token": token}
        source = str(path_or_repo)
        index = Path(source) / INDEX_NAME
        if not Path(source).is_dir():
            index = Path(str(hf_hub_download(source, INDEX_NAME, revision=revision, token=token)))
        values = read_json(index)
        count = values.get("members")
        if values.get("version") != _FORMAT or type(count) is not int or not 0 < count <= _MOST:
            raise ValueError(f"{index} lists no members of an ensemble that this version can read: {values!r:.80}")
        given = {name: processor_class.from_pretrained(source, trust_remote_code=False, **hub), **kwargs}
        models = [
            model_class.from_pretrained(
                source, subfolder=f"member-{number}", use_safetensors=True, trust_remote_code=False, **hub
            )
            for number in range(count)
        ]
        self.members = [build(task, model=model.eval(), **given) for model in models]

    def __call__(self, inputs: Any, top_k: int | None = None, **kwargs: Any) -> list[Any]:
        """As the pipeline of one model: for an input its classes with their scores, best first; for a list, a list.

        Args:
            inputs: a text or an image, or a list of them.
            top_k: how many classes; None gives all.
            kwargs: of the members' pipelines.
        """
        if not isinstance(inputs, list):
            return self([inputs], top_k, **kwargs)[0]
        classes = self.members[0].model.config.num_labels
        answers = [member(inputs, top_k=classes, **kwargs) for member in self.members]
        return [_mean(list(answer))[:top_k] for answer in zip(*answers, strict=True)]


def _mean(answers: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    total: dict[str, float] = {}
    for answer in answers:
        for entry in answer:
            total[entry["label"]] = total.get(entry["label"], 0.0) + entry["score"] / len(answers)
    ranked = sorted(total.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ranked]
