"""What a run saw of every sample: the per-sample record from which wrong labels are read.

Rows are stable sample indices, never batch positions. Everything lives in two tables on the training device, a row per
sample, so listening reads and writes each once and never waits for the device.

Shape suffixes: N samples of the dataset, B batch, C classes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.files import write_whole
from hf_clidmu.weighting import label_margin


if TYPE_CHECKING:
    import pandas
    import pyarrow

# The columns of the two tables, in their order there.
_INTEGER = (
    "times_seen",
    "given_label",
    "times_agreed",
    "times_forgotten",
    "last_agreed",
    "candidate",
    "candidate_votes",
)
_REAL = ("probability", "margin", "loss", "weight")


class Ledger:
    """Per-sample statistics over all the times a sample was seen in training.

    Args:
        num_samples: N, rows of the training dataset.
        device: where to keep the record: that of the training.
    """

    def __init__(self, num_samples: int, device: torch.device | str = "cpu"):
        self.num_samples = num_samples
        self._integers = torch.zeros(num_samples, len(_INTEGER), dtype=torch.int32, device=device)
        self._reals = torch.zeros(num_samples, len(_REAL), dtype=torch.float32, device=device)
        self._columns = {
            **dict(zip(_INTEGER, self._integers.unbind(dim=1), strict=True)),
            **dict(zip(_REAL, self._reals.unbind(dim=1), strict=True)),
        }  # views
        self._columns["given_label"].fill_(-1)
        self._columns["candidate"].fill_(-1)

    def __len__(self) -> int:
        return self.num_samples

    @torch.no_grad()
    def update(self, index_B: Tensor, logits_BC: Tensor, labels_B: Tensor, weight_B: Tensor | None = None) -> None:
        """Listen to one training batch. A sample that stands twice in it counts once.

        Args:
            index_B: sample indices.
            logits_BC: the model's logits, before the update.
            labels_B: the given labels.
            weight_B: how much each label counted; None means 1.
        """
        logits_BC = logits_BC.detach().float()
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        predicted_B = logits_BC.argmax(dim=1).int()
        agreed_B = (predicted_B == labels_B).int()

        seen_B, _, times_agreed_B, forgotten_B, last_B, candidate_B, votes_B = self._integers[index_B].unbind(dim=1)
        # Boyer-Moore vote: finds the label that was predicted more than half of the time in constant memory.
        candidate_B = torch.where(votes_B == 0, predicted_B, candidate_B)
        votes_B = torch.where(candidate_B == predicted_B, votes_B + 1, votes_B - 1)
        forgotten_B = forgotten_B + (last_B > agreed_B).int()
        integers = (seen_B + 1, labels_B.int(), times_agreed_B + agreed_B, forgotten_B, agreed_B, candidate_B, votes_B)
        self._integers[index_B] = torch.stack(integers, dim=1)

        counted_B = torch.ones_like(loss_B) if weight_B is None else weight_B.detach().float()
        reals = ((-loss_B).exp(), label_margin(logits_BC, labels_B), loss_B, counted_B)
        self._reals[index_B] += torch.stack(reals, dim=1)

    def table(self) -> "pyarrow.Table":
        """The record as a table, one row per sample that was seen.

        Columns (names as in cleanlab where it has one): `index`; `given_label`; `predicted_label`, the label predicted
        most of the time; `label_score`, the mean probability of the given label, low for suspects; `margin`, the mean
        logit margin of the given label (area under the margin, arXiv 2001.10528); `agreement`, the share of times the
        prediction was the given label; `times_seen`; `times_forgotten`; `loss` and `weight`, means.
        """
        import pyarrow

        column = {name: values.cpu() for name, values in self._columns.items()}
        seen = column["times_seen"] > 0
        column = {name: values[seen] for name, values in column.items()}
        times = column["times_seen"].double()
        mean = {name: (column[name].double() / times).float().numpy() for name in (*_REAL, "times_agreed")}
        return pyarrow.table(
            {
                "index": seen.nonzero().squeeze(1).numpy(),
                "given_label": column["given_label"].numpy(),
                "predicted_label": column["candidate"].numpy(),
                "label_score": mean["probability"],
                "margin": mean["margin"],
                "agreement": mean["times_agreed"],
                "times_seen": column["times_seen"].numpy(),
                "times_forgotten": column["times_forgotten"].numpy(),
                "loss": mean["loss"],
                "weight": mean["weight"],
            }
        )

    def suspects(self, count: int | None = None) -> "pandas.DataFrame":
        """The samples whose labels the run believes least, most suspect first.

        Args:
            count: how many; None returns all that were seen.
        """
        frame = self.table().to_pandas().sort_values("label_score", kind="stable", ignore_index=True)
        return frame if count is None else frame.head(count)

    def save(self, path: str | Path) -> None:
        """Write [`table`] as a Parquet file, whole or not at all."""
        import pyarrow.parquet

        write_whole(path, lambda unfinished: pyarrow.parquet.write_table(self.table(), unfinished))

    def state_dict(self) -> dict[str, Tensor]:
        """The whole record as tensors, for a checkpoint."""
        whole = torch.contiguous_format  # a column of a table is not, and shares its memory
        return {name: values.cpu().clone(memory_format=whole) for name, values in self._columns.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue a record.

        Raises:
            ValueError: when it belongs to another dataset or another version.
        """
        shapes = {name: tuple(values.shape) for name, values in state.items()}
        expected = dict.fromkeys(self._columns, (self.num_samples,))
        if shapes != expected:
            raise ValueError(
                f"the saved ledger does not fit: expected columns {sorted(expected)} of {self.num_samples} samples, "
                f"found {shapes}; was the checkpoint made with another training dataset?"
            )
        for name, values in state.items():
            self._columns[name].copy_(values)
