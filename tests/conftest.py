"""What every test shares: no network, one thread, and the folder of oracles and real data."""

import os


for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads would crawl
    os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402


if "OMP_NUM_THREADS" not in os.environ:  # else somebody has limited them already
    torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with `oracles/` and `data/`; the test is skipped where there is none."""
    folder = Path(os.environ.get("HF_CLIDMU_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the shared folder is not at {folder}; set HF_CLIDMU_SHARED to the folder with oracles/ and data/")
    return folder


@pytest.fixture(scope="session")
def oracle(shared_dir: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """Loads the numbers of one oracle by its name: arrays as tensors, float64 and int64; text is left out."""

    def load(name: str) -> dict[str, torch.Tensor]:
        path = shared_dir / "oracles" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"the oracle '{name}' is not at {path}; set HF_CLIDMU_SHARED to the folder with oracles/")
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays if arrays[key].dtype.kind in "bif"}

    return load


@pytest.fixture
def bert_folder(tmp_path: Path) -> tuple[Path, BertForSequenceClassification]:
    """A tiny BERT classifier with its tokenizer, as a folder, and the model in it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "very"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=2, **sizes))
    model.save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", model
