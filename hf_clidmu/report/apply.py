"""From a report, and from what people decided about it, to a mended dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hf_clidmu.data._rows import name_rows, quote

from .calibration import THRESHOLD
from .labels import LabelReport, check_table, read_table


if TYPE_CHECKING:
    import pandas
    from datasets import Dataset

Policy = Literal["annotate", "drop", "relabel", "suggested"]
POLICIES = ("annotate", "drop", "relabel", "suggested")

#: What a person can say of a given label.
DECISIONS = ("wrong", "right", "unsure")
DECISION_COLUMNS = ("index", "given_label", "decision", "new_label")

#: Columns that a report adds to a dataset.
ADDED_COLUMNS = ("given_label", "predicted_label", "label_score", "p_wrong", "is_label_issue", "suggestion")


def apply_report(
    dataset: Dataset,
    report: LabelReport | pandas.DataFrame | str | Path,
    policy: Policy = "annotate",
    *,
    threshold: float | None = None,
    budget: int | float | None = None,
    decisions: str | Path | pandas.DataFrame | None = None,
    label_column: str = "label",
) -> Dataset:
    """A dataset whose wrong labels are marked, left out or replaced. The dataset itself is not changed.

    Args:
        dataset: the one that was reported on, rows in the same order.
        report: a report, its table, its Parquet or CSV file, or the folder it was saved to.
        policy: what is done with the labels that count as wrong: `annotate` adds the report's columns (`given_label`,
            `predicted_label`, `label_score`, `p_wrong`, `is_label_issue`, `suggestion`) and leaves rows and labels
            alone; `drop` leaves their rows out; `relabel` gives all of them the likeliest other class; `suggested`
            does what the report suggests: relabels where one class is more likely than not, leaves the others out.
        threshold: labels count as wrong when `p_wrong` is above it, 0.5 by default.
        budget: at most so many labels count as wrong, the most suspect ones: a number of rows, or a share below 1.
            Without `threshold`, a budget is used up whatever `p_wrong` is.
        decisions: of people, as exported by the page: a CSV file or table with `index`, `given_label`, `decision`
            (`wrong`, `right`, `unsure`) and `new_label` (empty: the report's). They win over threshold and budget:
            `wrong` labels count, `right` and `unsure` ones do not. A new label replaces the old one under `relabel`
            and `suggested`, whatever the report suggests.
        label_column: of the given labels, 0..C-1.

    Returns:
        The dataset, its label column of the same type as before.

    Raises:
        ValueError: when the report is of another dataset, or an argument or decision makes no sense; the message names
            rows.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {quote(POLICIES)}, got {policy!r}")
    table = _table_of(report)
    _check_fit(dataset, table, label_column)
    wrong_N = _counted_wrong(table, threshold, budget)
    new_label_N = table["suggested_label"].to_numpy().copy()
    # Above one half the report suggests a class; where a lower threshold was asked for, what is predicted is it.
    unsuggested_N = new_label_N == table["given_label"].to_numpy()
    new_label_N[unsuggested_N] = table["predicted_label"].to_numpy()[unsuggested_N]
    certain_N = (table["suggestion"] == "relabel").to_numpy()
    if decisions is not None:
        wrong_N, new_label_N, certain_N = _with_decisions(
            table, _read_decisions(decisions), wrong_N, new_label_N, certain_N, _classes_of(dataset, label_column)
        )

    if policy == "annotate":
        return _annotated(dataset, table, wrong_N)
    if policy == "drop":
        return dataset.select(np.flatnonzero(~wrong_N))
    relabelled_N = wrong_N if policy == "relabel" else wrong_N & certain_N
    labels_N = np.where(relabelled_N, new_label_N, table["given_label"].to_numpy())
    kept = np.flatnonzero(~wrong_N | relabelled_N)
    return _with_column(dataset, label_column, labels_N.tolist()).select(kept)


def _table_of(report: LabelReport | pandas.DataFrame | str | Path) -> pandas.DataFrame:
    if isinstance(report, LabelReport):
        return report.table
    if isinstance(report, (str, Path)):
        return LabelReport.load(report).table if Path(report).is_dir() else read_table(report)
    check_table(report, "the table")
    return report


def _check_fit(dataset: Dataset, table: pandas.DataFrame, label_column: str) -> None:
    if label_column not in dataset.column_names:
        raise ValueError(f"the dataset has no column {label_column!r}; its columns: {quote(dataset.column_names)}")
    if len(table) != len(dataset) or not (table["index"].to_numpy() == np.arange(len(dataset))).all():
        raise ValueError(
            f"the report is of {len(table)} rows, the dataset has {len(dataset)}: a report and its dataset must hold "
            "the same rows in the same order"
        )
    labels_N = np.asarray(dataset[label_column][:])
    if labels_N.dtype.kind not in "iu":
        raise ValueError(f"column {label_column!r} holds no integers: pass the dataset that load_corpus gave")
    other = np.flatnonzero(labels_N != table["given_label"].to_numpy()).tolist()
    if other:
        raise ValueError(
            f"the report saw other labels in {name_rows(other)}: it is of another dataset, or of other labels"
        )


def _counted_wrong(
    table: pandas.DataFrame, threshold: float | None, budget: int | float | None
) -> npt.NDArray[np.bool_]:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    wrong_N = table["p_wrong"].to_numpy()
    counted_N = np.ones(len(table), dtype=bool)
    if threshold is not None or budget is None:
        counted_N = wrong_N > (THRESHOLD if threshold is None else threshold)
    if budget is None:
        return counted_N
    if isinstance(budget, bool) or budget < 0 or (budget >= 1 and budget != int(budget)):
        raise ValueError(f"budget must be a number of rows, or a share below 1; got {budget}")
    rows = int(budget) if budget >= 1 else round(budget * len(table))
    within_N = np.zeros(len(table), dtype=bool)
    within_N[np.argsort(-wrong_N, kind="stable")[:rows]] = True
    return counted_N & within_N


def _read_decisions(decisions: str | Path | pandas.DataFrame) -> pandas.DataFrame:
    import pandas

    where = "the decisions"
    if isinstance(decisions, (str, Path)):
        where = str(decisions)
        try:
            decisions = pandas.read_csv(decisions, dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{where} cannot be read as a CSV file: {error}") from error
    missing = [name for name in DECISION_COLUMNS if name not in decisions.columns]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: it must hold {', '.join(DECISION_COLUMNS)}")
    unknown = sorted(set(decisions["decision"]) - set(DECISIONS))
    if unknown:
        raise ValueError(f"{where}: decision must be one of {quote(DECISIONS)}, found {quote(unknown[:3])}")
    parsed = {"decision": decisions["decision"].to_numpy()}
    for name in ("index", "given_label", "new_label"):
        text = decisions[name].fillna("").astype(str).str.strip().replace("", "-1" if name == "new_label" else "")
        bad = np.flatnonzero(~text.str.fullmatch(r"-?\d{1,18}").to_numpy(dtype=bool)).tolist()
        if bad:
            raise ValueError(f"{where}: {name} holds no whole number in {name_rows(bad)}, but {text.iloc[bad[0]]!r}")
        parsed[name] = text.astype("int64").to_numpy()
    return pandas.DataFrame(parsed)


def _with_decisions(
    table: pandas.DataFrame,
    decisions: pandas.DataFrame,
    wrong_N: npt.NDArray[np.bool_],
    new_label_N: npt.NDArray[np.int64],
    certain_N: npt.NDArray[np.bool_],
    classes: int,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    row, new = decisions["index"].to_numpy(), decisions["new_label"].to_numpy()
    outside = row[(row < 0) | (row >= len(table))].tolist()
    if outside:
        raise ValueError(f"the decisions speak of {name_rows(outside)} of a dataset of {len(table)} rows")
    twice = np.unique(row[decisions["index"].duplicated().to_numpy()]).tolist()
    if twice:
        raise ValueError(f"the decisions speak twice of {name_rows(twice)}")
    other = row[decisions["given_label"].to_numpy() != table["given_label"].to_numpy()[row]].tolist()
    if other:
        raise ValueError(f"the decisions are about other labels in {name_rows(other)}: they belong to another report")
    unknown = row[(new < -1) | (new >= classes)].tolist()
    if unknown:
        raise ValueError(f"new_label must lie in 0..{classes - 1}; it does not in {name_rows(unknown)}")
    wrong_N, new_label_N, certain_N = wrong_N.copy(), new_label_N.copy(), certain_N.copy()
    wrong_N[row] = decisions["decision"].to_numpy() == "wrong"
    told = new >= 0
    new_label_N[row[told]] = new[told]
    certain_N[row[told]] = True
    return wrong_N, new_label_N, certain_N


def _classes_of(dataset: Dataset, label_column: str) -> int:
    feature = dataset.features[label_column]
    return feature.num_classes if hasattr(feature, "num_classes") else int(max(dataset[label_column][:])) + 1


def _annotated(dataset: Dataset, table: pandas.DataFrame, wrong_N: npt.NDArray[np.bool_]) -> Dataset:
    values: dict[str, Sequence[Any]] = {name: table[name].tolist() for name in ADDED_COLUMNS}
    values["is_label_issue"] = wrong_N.tolist()
    for name, column in values.items():
        dataset = _with_column(dataset, name, column)
    return dataset


def _with_column(dataset: Dataset, name: str, values: Sequence[Any]) -> Dataset:
    feature = dataset.features.get(name)
    columns = dataset.column_names
    if name in columns:
        dataset = dataset.remove_columns(name)
    dataset = dataset.add_column(name, list(values))
    if feature is not None:
        dataset = dataset.cast_column(name, feature)
    return dataset.select_columns([*columns, *([] if name in columns else [name])])
