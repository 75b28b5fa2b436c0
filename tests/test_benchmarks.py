"""The cost benchmarks: their arithmetic, and that each of their trainers takes whole steps."""

import json

import pytest
import torch
from recipe_scripts import recipe
from test_trainer import Samples
from tiny_models import tiny_classifier
from transformers import Trainer


stepping, published, step_cost, scaling = (
    recipe(name, "benchmarks") for name in ("stepping", "published", "step_cost", "scaling")
)


def tiny(images=False):
    name = "timm:test_vit" if images else "bert"
    return stepping.Subject(
        lambda: tiny_classifier(name), lambda: Samples(name), {"use_cpu": True, "per_device_train_batch_size": 8}
    )


def test_ratios_are_paired_and_then_summarised():
    seconds = {
        step_cost.PLAIN: [1.0, 2.0, 4.0],
        step_cost.DEFAULT: [1.5, 2.0, 8.0],  # 1.5, 1, 2
        step_cost.PUBLISHED: [6.0, 6.0, 8.0],  # 6, 3, 2; to the default 4, 3, 1
    }
    taken = {mode: [stepping.Seconds(value, 2 * value) for value in values] for mode, values in seconds.items()}
    taken[step_cost.DEFAULT] = [time._replace(cpu=3 * time.device) for time in taken[step_cost.DEFAULT]]
    peaks = {step_cost.PLAIN: 2**21, step_cost.DEFAULT: 3 * 2**20, step_cost.PUBLISHED: 2**22}
    figures = step_cost.summary(taken, peaks)
    assert figures["plain_step_ms"] == 2000 and figures["plain_step_cpu_ms"] == 4000 and figures["plain_peak_mib"] == 2
    assert figures["modes"][step_cost.DEFAULT] == {
        "time": {"median": 1.5, "quartiles": [1.25, 1.75]},
        "cpu_time": {"median": 2.25, "quartiles": [1.875, 2.625]},
        "peak_memory": 1.5,
    }
    assert figures["modes"][step_cost.PUBLISHED]["time"]["median"] == 3
    assert figures["published_over_ours"][step_cost.DEFAULT]["time"] == {"median": 3, "quartiles": [2, 3.5]}
    lines = step_cost.rows({"a model": figures})
    assert lines[1] == ["a model", step_cost.DEFAULT, "1.50", "1.25 to 1.75", "2.25", "1.88 to 2.62", "1.50"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_every_mode_takes_whole_steps(images):
    figures = step_cost.measure(tiny(images), list(step_cost.MODES), rounds=1)
    assert set(figures["modes"]) == set(step_cost.MODES)
    assert all(mode["time"]["median"] > 0 and mode["peak_memory"] > 1 for mode in figures["modes"].values())


def test_meta_steps_are_taken_and_move_the_weighting():
    for mode in (step_cost.DEFAULT, step_cost.EVERYTHING, step_cost.PUBLISHED):
        stepper = step_cost.stepper(tiny(), mode)
        before = [parameter.clone() for parameter in stepper.trainer.weighting.parameters()]
        stepper.seconds(2)
        assert not all(
            torch.equal(a, b) for a, b in zip(before, stepper.trainer.weighting.parameters(), strict=True)
        ), mode


def test_peak_memory_is_that_of_weights_optimiser_gradients_and_activations():
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.classifier = torch.nn.Linear(100, 1000, bias=False), torch.nn.Linear(1000, 2, bias=False)

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.cross_entropy(self.classifier(self.layer(x)), labels)}

    samples = stepping.Samples({"x": torch.randn(64, 100)}, num_labels=2)
    stepper = stepping.Stepper(Trainer, Wide(), samples, use_cpu=True)
    stepper.seconds()  # two moments a weight
    weights, activations = 4 * (100 * 1000 + 1000 * 2), 4 * 32 * 1000
    assert stepper.peak_bytes() == pytest.approx(4 * weights + activations, rel=0.15)


def test_a_profile_names_the_parts_of_a_step():
    lines = step_cost.profiled(step_cost.stepper(tiny(), step_cost.DEFAULT), steps=2)
    names = [line[0].strip() for line in lines]
    assert {"classifier.forward", "lookahead.__call__", "base.learn", "trainer._loss"} <= set(names)
    assert sum(float(line[1]) for line in lines if not line[0].startswith(" ")) > 0


def test_scaling_writes_one_figure_a_point(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(scaling.AXES, "classes", (2, 5))
    scaling.main(["--rounds", "2", "--axes", "classes", "--output", str(tmp_path / "scaling.json")])
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert list(written["axes"]["classes"]) == ["2", "5"]
    assert all(0 < figure["ledger_bytes_a_sample"] <= 64 for figure in written["axes"]["classes"].values())
    assert "| classes | 5" in capsys.readouterr().out
