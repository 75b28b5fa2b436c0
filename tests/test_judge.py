"""The judge: the same samples, the same chunks, the same number, and no trace of having been there."""

import json
import math

import pytest
import torch
from tiny_models import tiny_batch, tiny_classifier
from torch.utils.data import Dataset
from transformers import default_data_collator

from hf_clidmu.batches import IndexedDataset, SampleCollator
from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.divergence import clid
from hf_clidmu.judge import Judge, Levels, Reading, is_higher, warn_of_chance
from hf_clidmu.precompute import Encoded


CPU = torch.device("cpu")


class Samples(Dataset):
    """Samples of an architecture; training samples, which the judge must not see, are noise."""

    def __init__(self, name, size=23, evaluation=False):
        self.inputs, _ = tiny_batch(name, size=size, seed=3)
        self.evaluation = evaluation

    def __len__(self):
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, row):
        sample = {key: values[row] for key, values in self.inputs.items()}
        return sample if self.evaluation else {key: torch.zeros_like(value) for key, value in sample.items()}

    def evaluation_view(self):
        view = Samples.__new__(Samples)
        view.inputs, view.evaluation = self.inputs, True
        return view


def judge_of(name, rows, **changes):
    model = tiny_classifier(name)
    dataset = Samples(name)
    settings = {
        "collate": SampleCollator(default_data_collator),
        "batch_size": 4,
        "temperature": 0.5,
        "by_class": False,
        "centred": False,
        **changes,
    }
    judge = Judge(tap=ClassifierTap(model), dataset=IndexedDataset(dataset), rows=rows, **{**settings, **changes})
    return judge, model, dataset


def seen_by(model, tap, dataset, rows):
    inputs = {key: values[rows] for key, values in dataset.inputs.items()}
    with torch.no_grad():
        output = tap.forward(model.eval(), inputs)
    model.train()
    return output.features_BD, output.logits_BC


@pytest.mark.parametrize("name", ["bert", "timm:test_resnet"])
def test_clid_of_fixed_rows_in_fixed_chunks(name):
    rows = [7, 0, 22, 3, 9, 11, 4, 15, 2, 18, 1]
    judge, model, dataset = judge_of(name, rows, chunk_size=5, temperature=0.3)
    features_ND, logits_NC = seen_by(model, judge.tap, dataset, rows)
    chunks = [clid(features_ND[i : i + 5], logits_NC[i : i + 5], 0.3) for i in (0, 5)]  # the eleventh is left out
    assert judge.clid(model, CPU) == pytest.approx(float(sum(chunks) / 2), rel=1e-5)


def test_classes_are_compared_whatever_their_probabilities():
    rows = list(range(20))
    judge, model, dataset = judge_of("bert", rows, by_class=True)
    with torch.no_grad():
        judge.tap.head.weight.mul_(50)  # predictions that differ
    features_ND, logits_NC = seen_by(model, judge.tap, dataset, rows)
    classes = torch.nn.functional.one_hot(logits_NC.argmax(1), logits_NC.shape[1])
    assert len(classes.unique(dim=0)) > 1
    same_NN = (classes @ classes.T).float()
    similarity_NN = torch.nn.functional.normalize(features_ND, dim=1)
    log_S_NN = torch.log(torch.softmax((similarity_NN @ similarity_NN.T).clamp(min=0) / 0.5, dim=1) + 1e-7)
    expected = -(same_NN / same_NN.sum(1, keepdim=True) * log_S_NN).sum(1).mean()
    assert judge.clid(model, CPU) == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        judge.tap.head.weight.mul_(0.01)
        judge.tap.head.bias.mul_(0.01)
    assert judge.clid(model, CPU) == pytest.approx(float(expected), rel=1e-5)


def test_fixed_features_replace_those_of_the_model():
    rows = list(range(8))
    fixed_ND = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    judge, model, dataset = judge_of("bert", rows, features_ND=fixed_ND)
    features_ND, logits_NC = seen_by(model, judge.tap, dataset, rows)
    assert judge.clid(model, CPU) == pytest.approx(float(clid(fixed_ND, logits_NC)), rel=1e-5)
    assert float(clid(fixed_ND, logits_NC)) != pytest.approx(float(clid(features_ND, logits_NC)), rel=1e-3)


def test_what_all_samples_have_in_common_does_not_count():
    rows = list(range(20))
    fixed_ND = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    common_D = torch.full((5,), 3.0)
    judge, model, dataset = judge_of("bert", rows, features_ND=fixed_ND + common_D, centred=True)
    _, logits_NC = seen_by(model, judge.tap, dataset, rows)
    expected = clid(fixed_ND - fixed_ND.mean(0), logits_NC)
    assert judge.clid(model, CPU) == pytest.approx(float(expected), rel=1e-5)
    judge.centred = False
    assert judge.clid(model, CPU) != pytest.approx(float(expected), rel=1e-3)


def test_the_size_of_a_forward_does_not_matter():
    values = [judge_of("bert", list(range(20)), batch_size=size) for size in (1, 7, 64)]
    found = [judge.clid(model, CPU) for judge, model, _ in values]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "timm:test_resnet"])
def test_judging_leaves_no_trace(name):
    def drawing(samples):  # somebody's collator uses the global random state
        torch.rand(3)
        return default_data_collator(samples)

    judge, model, _ = judge_of(name, list(range(10)), collate=SampleCollator(drawing))
    list(model.children())[0].eval()  # a part that somebody froze must stay so
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = judge.clid(model, CPU)
    torch.manual_seed(4)
    assert judge.clid(model, CPU) == first
    torch.manual_seed(3)
    judge.clid(model, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_better_match_of_predictions_and_features_has_a_lower_clid():
    judge, model, dataset = judge_of("bert", list(range(20)))
    with torch.no_grad():
        judge.tap.head.weight.mul_(50)  # predictions that differ
    _, logits_NC = seen_by(model, judge.tap, dataset, judge.rows)
    probability_NC = logits_NC.softmax(1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    judge.features_ND = probability_NC
    aligned = judge.clid(model, CPU)
    judge.features_ND = probability_NC[order]
    assert aligned < judge.clid(model, CPU)


@pytest.mark.parametrize(
    ("difference_K", "tolerance", "expected"),
    [
        ([0.1, 0.1, 0.1], 100.0, True),  # the same in every chunk: no error
        ([0.0, 0.0, 0.0], 0.0, False),
        ([0.2, -0.1, 0.2], 0.0, True),
        ([0.2, -0.1, 0.2], 0.9, True),  # mean 0.1, standard error 0.1
        ([0.2, -0.1, 0.2], 1.1, False),
        ([-0.2, -0.1, -0.2], 0.0, False),
        ([0.3], 9.0, True),  # one chunk has no error to speak of
    ],
)
def test_two_states_are_told_apart_chunk_by_chunk(difference_K, tolerance, expected):
    lowest_K = [4.5, 4.6, 4.4][: len(difference_K)]
    clid_K = [low + difference for low, difference in zip(lowest_K, difference_K, strict=True)]
    assert is_higher(clid_K, lowest_K, tolerance) is expected


def reading(*clid_K, share=math.nan):
    return Reading(clid_K, 9.0, share)


def test_states_level_with_the_lowest_stand_at_its_clid():
    levels = Levels(tolerance=1.1)
    states = [(5.0, 5.0, 5.0), (3.0, 3.0, 3.0), (3.2, 2.9, 3.2), (3.2, 3.1, 3.2), (2.9, 2.9, 2.9), (3.2, 2.9, 3.2)]
    assert [levels.see(reading(*state)) for state in states] == pytest.approx([5.0, 3.0, 3.0, 9.5 / 3, 2.9, 9.3 / 3])


def test_a_rise_by_a_small_share_of_the_fall_is_none():
    levels = Levels(share=0.2)
    assert [levels.see(reading(value)) for value in (5.0, 3.0, 3.39, 3.41, 2.0, 2.59, 2.61)] == pytest.approx(
        [5.0, 3.0, 3.0, 3.41, 2.0, 2.0, 2.61]
    )


def test_all_states_are_level_while_the_classes_are_not_what_the_features_are_about():
    levels = Levels()
    states = [(3.0, 0.1), (2.0, 0.2), (2.5, 0.9), (2.9, 0.3), (1.5, 0.5), (1.9, 0.1), (1.2, 0.1)]
    assert [levels.see(reading(clid, share=share)) for clid, share in states] == [3.0, 3.0, 3.0, 3.0, 1.5, 1.9, 1.2]
    assert not levels.is_blind
    assert levels.clustering == 0.5


def test_levels_go_on_from_what_a_checkpoint_keeps():
    whole, first, second = (Levels(1.0, 0.2) for _ in range(3))
    states = [(4.0, 4.2), (3.0, 3.1), (3.1, 3.0), (3.3, 3.2)]
    states = [reading(*state, share=0.3) for state in states]
    expected = [whole.see(state) for state in states]
    found = [first.see(state) for state in states[:2]]
    second.load(json.loads(json.dumps(first.state())))
    assert second.is_blind
    assert found + [second.see(state) for state in states[2:]] == expected
    empty = Levels()
    empty.load(Levels().state())
    assert empty.lowest_K == ()
    assert not empty.is_blind


@pytest.mark.parametrize(
    "state",
    [None, {}, {"first": [1.0]}, {"first": [1.0], "lowest": ["x"]}, {"first": [1.0], "lowest": [1.0, 2.0]}]
    + [{"first": [1.0], "lowest": [1.0]}, {"first": [1.0], "lowest": [1.0], "clustering": "x"}],
)
def test_levels_that_are_none_are_refused(state):
    with pytest.raises(ValueError, match=r"CLID|saved state"):
        Levels().load(state)


def test_alignment_tells_predictions_that_follow_the_features_from_others():
    generator = torch.Generator().manual_seed(0)
    centres_CD = torch.randn(5, 8, generator=generator)
    rows = list(range(60))
    model = tiny_classifier("bert")
    dataset = Samples("bert", size=60)
    judge = Judge(ClassifierTap(model), IndexedDataset(dataset), rows, SampleCollator(default_data_collator), 20, 0.1)
    judge.chunk_size = 20
    with torch.no_grad():
        judge.tap.head.weight.mul_(50)  # predictions that differ
    predicted_N = seen_by(model, judge.tap, dataset, rows)[1].argmax(1)
    assert predicted_N.bincount().max() < 50
    judge.features_ND = centres_CD[predicted_N] + 0.1 * torch.randn(60, 8, generator=generator)
    aligned = judge.read(model, CPU)
    judge.features_ND = judge.features_ND[torch.randperm(60, generator=generator)]
    strangers = judge.read(model, CPU)
    assert aligned.alignment > 10 and abs(strangers.alignment) < 3
    assert aligned.clid < strangers.clid
    with torch.no_grad():
        judge.tap.head.weight.zero_()
    assert judge.read(model, CPU).alignment == pytest.approx(0, abs=1e-3)  # one class for all
    judge.chunk_size = 60
    assert torch.tensor(judge.read(model, CPU).alignment).isnan()


def test_the_share_of_the_clustering_is_one_for_the_clusters_and_small_for_what_lies_across_them():
    """Two factors: a strong one that the features cluster by, and a weak one beside it."""
    generator = torch.Generator().manual_seed(0)
    model = tiny_classifier("bert")
    strong_N, weak_N = (torch.randint(2, (200,), generator=generator) for _ in range(2))
    features_ND = 0.05 * torch.randn(200, model.config.hidden_size, generator=generator)
    features_ND[:, 0] += 2.0 * strong_N - 1
    features_ND[:, 1] += 0.4 * weak_N - 0.2
    shares = {}
    for name, said_N in {"strong": strong_N, "weak": weak_N, "chance": torch.arange(200) % 2}.items():
        judge = Told(said_N, features_ND)
        shares[name] = judge.read(model, CPU).share
    assert shares["strong"] == pytest.approx(1, abs=1e-6)
    assert 0 < shares["weak"] < 0.1
    assert abs(shares["chance"]) < 0.1
    assert math.isnan(Told(strong_N, features_ND, by_class=False).read(model, CPU).share)
    assert math.isnan(Told(strong_N[:19], features_ND[:19]).read(model, CPU).share)  # ten samples a class, or none
    assert math.isnan(Told(strong_N, features_ND.index_fill(0, torch.tensor([3]), math.inf)).read(model, CPU).share)


class Told(Judge):
    """A judge of features and classes that are given."""

    def __init__(self, said_N, features_ND, **changes):
        model = tiny_classifier("bert", num_labels=2)
        dataset = IndexedDataset(Samples("bert", size=len(said_N)))
        collate = SampleCollator(default_data_collator)
        rows = list(range(len(said_N)))
        super().__init__(ClassifierTap(model), dataset, rows, collate, 50, 0.5, features_ND, chunk_size=100, **changes)
        self.said_N = said_N

    def read(self, model, device):
        logits_NC = torch.nn.functional.one_hot(self.said_N, 2).float()
        seen = Encoded(self.features_ND, logits_NC, self.features_ND, None, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hf_clidmu.judge.encode", lambda *_, **__: seen)
            return super().read(model, device)


@pytest.mark.parametrize(
    ("alignment", "clustering", "said"),
    [(9.0, 0.9, ""), (9.0, math.nan, ""), (1.0, 0.9, "not to be trusted"), (9.0, 0.2, "20 % of the clustering")],
)
def test_what_kept_clid_from_selecting_is_said(alignment, clustering, said, caplog):
    warn_of_chance(alignment, clustering)
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
