"""The label report: a table with one row per sample, and what it adds up to.

    seen = encode(model, ClassifierTap(model), data.train, data.collator, 128, device, middle=True)  # .precompute
    report = label_report(
        labels,
        seen.logits_NC,
        seen.features_ND,
        label_names,
        general_features=seen.middle_ND,  # general_ND, if the encoder was frozen
        ledger=trainer.ledger.table(),
    )
    report.save("outputs/run")

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_clidmu.files import read_json, write_json, write_whole

from .calibration import THRESHOLD, Verdict, judge_labels
from .confusion import Interval, resampled
from .evidence import LEDGER_COLUMNS, Evidence, IntArray, gather
from .trust import doubts


if TYPE_CHECKING:
    import pandas
    import pyarrow

TABLE_NAME = "label_report"
SUMMARY_NAME = "label_report.json"

#: What a table must hold to be read; further columns are signals.
COLUMNS = {
    "index": "i",
    "given_label": "i",
    "given_name": "O",
    "predicted_label": "i",
    "predicted_name": "O",
    "label_score": "f",
    "p_wrong": "f",
    "is_label_issue": "b",
    "suggestion": "O",
    "suggested_label": "i",
    "suggested_name": "O",
}
SUGGESTIONS = ("keep", "relabel", "review")

_RESAMPLES = 50


@dataclass
class LabelReport:
    """Which labels of a dataset are wrong, as far as can be told without a clean one.

    Attributes:
        table: a row per sample, in the order of the dataset. Columns (names as in cleanlab where it has one): `index`;
            `given_label` and `given_name`; `predicted_label` and `predicted_name`, what the evidence favours;
            `label_score`, 1 - `p_wrong`, low for suspects; `p_wrong`, the probability that the label is wrong;
            `is_label_issue`, whether that is above one half; `suggestion`: `keep`, `relabel` (one other class is more
            likely than not) or `review` (wrong, but none is); `suggested_label` and `suggested_name`, the given label
            where it is to be kept, else the likeliest other class. Then signals, high for good labels:
            `self_confidence` and `margin` of the model's probability of the given label, `neighbour_confidence` and
            `linear_confidence`, that of its neighbours and of the features (without the sample itself),
            `neighbour_labels`, share of neighbours given the same label; of the ledger, where there is one,
            `mean_probability`, `area_under_margin`, `agreement`, `times_forgotten` (low for good labels) and `weight`.
        label_names: class names in index order.
        noise_rate: estimated share of wrong labels, with its 95 % interval over samples. The interval says nothing of
            whether the model behind it is right; `doubts` do.
        contradicted: share of labels that the model contradicts.
        transition: (C, C) estimated probabilities of given classes, a row per true class.
        transition_low, transition_high: its 95 % interval.
        power: AUROC of the score on labels made wrong on purpose; None where nothing seems to be wrong.
        doubts: reasons not to trust this report; empty where nothing speaks against it.
        settings: what it was made with, for the record.
    """

    table: pandas.DataFrame
    label_names: list[str]
    noise_rate: Interval
    contradicted: float
    transition: list[list[float]]
    transition_low: list[list[float]]
    transition_high: list[list[float]]
    power: float | None
    doubts: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def suspects(self, count: int | None = None) -> pandas.DataFrame:
        """The rows whose labels are believed least, most suspect first.

        Args:
            count: how many; None returns all.
        """
        ordered = self.table.sort_values("label_score", kind="stable", ignore_index=True)
        return ordered if count is None else ordered.head(count)

    def summary(self) -> dict[str, Any]:
        """Everything but the table, as plain values."""
        values = {name: value for name, value in vars(self).items() if name != "table"}
        return {**values, "noise_rate": asdict(self.noise_rate), "num_samples": len(self.table)}

    def save(self, folder: str | Path) -> None:
        """Write `label_report.parquet`, `label_report.csv` and `label_report.json`, each whole or not at all."""
        folder = Path(folder)
        write_whole(folder / f"{TABLE_NAME}.parquet", lambda path: self.table.to_parquet(path, index=False))
        write_whole(folder / f"{TABLE_NAME}.csv", lambda path: self.table.to_csv(path, index=False))
        write_json(folder / SUMMARY_NAME, self.summary(), indent=1)

    @classmethod
    def load(cls, folder: str | Path) -> LabelReport:
        """Read what [`save`] wrote.

        Raises:
            FileNotFoundError: when there is no report in the folder.
            ValueError: when a file is damaged or lacks something.
        """
        folder = Path(folder)
        path = folder / f"{TABLE_NAME}.parquet"
        for needed in (path, folder / SUMMARY_NAME):
            if not needed.is_file():
                raise FileNotFoundError(f"there is no {needed.name} in {folder}: python recipes/report.py makes one")
        values = read_json(folder / SUMMARY_NAME)
        values.pop("num_samples", None)
        try:
            values["noise_rate"] = Interval(**values["noise_rate"])
            return cls(table=read_table(path), **values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / SUMMARY_NAME} is of another version: {error}") from error


def label_report(
    labels: Any,
    logits: Any,
    features: Any,
    label_names: Sequence[str],
    *,
    general_features: Any = None,
    ledger: pandas.DataFrame | pyarrow.Table | None = None,
    neighbours: int = 10,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> LabelReport:
    """Find the labels that are not to be believed. No clean label is read.

    Args:
        labels: (N,) given labels, 0..C-1.
        logits: (N, C) of any classifier of these classes, in evaluation mode, without augmentation.
        features: (N, D) inputs of its last layer, or other features of the same samples.
        label_names: class names in index order.
        general_features: (N, D') of the same samples, from below what was trained or from the middle of the model; see
            [`hf_clidmu.report.evidence.gather`]. Without them, the noise rate is underestimated where the model knows
            labels by heart.
        ledger: of the run that trained the model, where there is one.
        neighbours: of each sample in CLID's feature graph.
        seed: of the labels that are made wrong for calibration, and of the resampling behind the intervals.
        settings: anything to be kept with the report, as JSON values.

    Raises:
        ValueError: see [`hf_clidmu.report.evidence.gather`]; also when there are not as many names as classes.
    """
    evidence = gather(labels, logits, features, ledger, neighbours, general_features)
    names = [str(name) for name in label_names]
    if len(names) != evidence.num_classes:
        raise ValueError(f"label_names has {len(names)} names, but the logits are of {evidence.num_classes} classes")
    verdict = judge_labels(evidence, seed)
    rate, (low_CC, high_CC) = resampled(verdict.confusion, evidence.given_N, _RESAMPLES, seed)
    return LabelReport(
        table=_table(evidence, verdict, names),
        label_names=names,
        noise_rate=rate,
        contradicted=float((evidence.log_own_NC.argmax(axis=1) != evidence.given_N).mean()),
        transition=verdict.confusion.transition_CC.tolist(),
        transition_low=low_CC.tolist(),
        transition_high=high_CC.tolist(),
        power=None if math.isnan(verdict.power) else verdict.power,
        doubts=doubts(evidence, verdict, names),
        settings={"neighbours": neighbours, "seed": seed, "ledger": bool(evidence.ledger), **(settings or {})},
    )


def _table(evidence: Evidence, verdict: Verdict, names: list[str]) -> pandas.DataFrame:
    import pandas

    given_N, rows = evidence.given_N, np.arange(len(evidence))
    issue_N = verdict.wrong_N > THRESHOLD
    relabel_N = issue_N & (verdict.wrong_N * verdict.other_share_N > THRESHOLD)
    suggested_N = np.where(issue_N, verdict.other_N, given_N)
    own_NC = np.exp(evidence.log_own_NC)
    others_NC = own_NC.copy()
    others_NC[rows, given_N] = -np.inf

    def named(label_N: IntArray) -> Any:
        return np.array(names, dtype=object)[label_N]

    columns = {
        "index": rows,
        "given_label": given_N,
        "given_name": named(given_N),
        "predicted_label": verdict.predicted_N,
        "predicted_name": named(verdict.predicted_N),
        "label_score": 1 - verdict.wrong_N,
        "p_wrong": verdict.wrong_N,
        "is_label_issue": issue_N,
        "suggestion": np.where(relabel_N, "relabel", np.where(issue_N, "review", "keep")).astype(object),
        "suggested_label": suggested_N,
        "suggested_name": named(suggested_N),
        "self_confidence": own_NC[rows, given_N],
        "margin": own_NC[rows, given_N] - others_NC.max(axis=1),
        "neighbour_confidence": np.exp(evidence.log_neighbour_NC[rows, given_N]),
        "linear_confidence": verdict.confusion.belief_NC[rows, given_N],
        "neighbour_labels": evidence.neighbour_labels_N,
        **evidence.ledger,
    }
    return pandas.DataFrame(columns)


def read_table(path: str | Path) -> pandas.DataFrame:
    """The table of a report, from its Parquet or CSV file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is none, or lacks a column.
    """
    import pandas

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # Names of classes are text even where they look like numbers or like nothing ("NA", "").
        table = (
            pandas.read_csv(
                path,
                dtype={name: str for name, kind in COLUMNS.items() if kind == "O"},
                keep_default_na=False,
                na_values={name: [""] for name in LEDGER_COLUMNS.values()},
            )
            if path.suffix == ".csv"
            else pandas.read_parquet(path)
        )
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a label report: {error}") from error
    check_table(table, str(path))
    return table


def check_table(table: pandas.DataFrame, where: str) -> None:
    """Raise unless a table holds what a label report must hold.

    Raises:
        ValueError: which names the columns that are missing or of another type.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: is it a label report?")
    wrong = [name for name, kind in COLUMNS.items() if kind != "O" and table[name].dtype.kind != kind]
    if wrong:
        raise ValueError(f"{where}: {', '.join(wrong)} hold something else than a label report does")
