"""What is trained is in training mode, what is frozen is not, whatever mode it came in."""

import pytest
import torch

from vlp_bench.tasks.training import fit
from vlp_bench.tasks.vqa import VQA, Answerer

SHORT = ["task=vqa", "adaptation.epochs=1", "adaptation.batch_size=32", "adaptation.min_steps=0"]


@pytest.mark.parametrize(
    ("options", "vision", "moved"),
    [
        (["adaptation=frozen"], False, False),
        (["adaptation=frozen", "adaptation.batch_statistics=batch"], True, True),
        (["adaptation=finetune"], True, True),
    ],
)
def test_modes(options, vision, moved, pretrained, cell_of, monkeypatch):
    encoders = pretrained("convirt")
    assert not any(part.training for part in encoders.parts.values())
    seen = {}

    def look(self, batch, index):
        seen.update({name: {m.training for m in part.modules()} for name, part in self.parts.items()})
        seen["head"] = {self.head.training}

    def run(cell, model, train, val):
        before = {k: v.clone() for k, v in encoders.vision.state_dict().items() if "running_mean" in k}
        assert before
        facts = fit(cell, model, train, val)
        after = encoders.vision.state_dict()
        seen["moved"] = not all(torch.equal(v, after[k]) for k, v in before.items())
        return facts

    monkeypatch.setattr(Answerer, "on_train_batch_start", look)
    monkeypatch.setattr("vlp_bench.tasks.vqa.fit", run)
    VQA("accuracy").run(cell_of(encoders, *options, *SHORT))
    assert seen["vision"] == {vision}
    assert seen["text"] == {vision}
    assert seen["head"] == {True}
    assert seen["moved"] is moved


def test_of_a_part_that_is_trained_in_its_last_layers_the_others_stay(pretrained, cell_of, monkeypatch):
    encoders = pretrained("convirt")
    modes = []

    def look(self, batch, index):
        modes.append([{m.training for m in layer.modules()} for layer in self.parts["vision"].layers()])

    monkeypatch.setattr(Answerer, "on_train_batch_start", look)
    VQA("accuracy").run(cell_of(encoders, "adaptation=partial", *SHORT))
    assert modes[0][-1] == modes[0][-2] == {True}
    assert {False} in modes[0][:-2]
    assert all(True not in layer for layer in modes[0][:-2])
