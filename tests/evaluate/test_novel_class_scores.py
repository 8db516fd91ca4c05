from types import SimpleNamespace

import pytest
import torch

from potstill.data.digits_source import build_digits
from potstill.errors import InputError
from potstill.evaluate import evaluate_tasks, novel_class_scores
from potstill.models.novel_classes import NovelClassConfig, NovelClassModel

VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT |= {"intermediate_size": 32, "patch_size": 7}
KNOWN, CLASSES = 2, 4


class Given(torch.nn.Module):
    """Answers what it was given: cosines of each sample by its number."""

    def __init__(self, cosines, best=0):
        super().__init__()
        self.cosines, self.best_head = cosines, torch.tensor(best)

    def forward(self, pixel_values):
        found = self.cosines[pixel_values.long()]
        return SimpleNamespace(head_cosines=found, known_cosines=found[:, 0, :KNOWN])


def scores(true, predicted, best=0, **options):
    """``predicted``: for each head the class it says, known 0 and 1, clusters 2 and 3."""
    cosines = torch.nn.functional.one_hot(torch.tensor(predicted).T, CLASSES).float()
    data = [{"index": i, "true": t} for i, t in enumerate(true)]

    def collate(samples):
        return {
            "pixel_values": torch.tensor([float(s["index"]) for s in samples]),
            "true_class": torch.tensor([s["true"] for s in samples]),
        }

    return novel_class_scores(Given(cosines, best), data, collate, batch_size=3, **options)


def test_clusters_are_named_by_the_best_matching_and_known_classes_are_not():
    # Clusters 2 and 3 are swapped, which costs nothing; a known sample in a cluster and a new one in a class does.
    found = scores([0, 1, 1, 2, 2, 3, 3, 3], [[0, 1, 3, 3, 3, 2, 2, 0]])
    assert found["known"] == pytest.approx(2 / 3)
    assert found["novel"] == pytest.approx(4 / 5)
    assert found["all"] == pytest.approx(6 / 8)


def test_known_classes_that_are_swapped_are_wrong():
    assert scores([0, 0, 1, 1], [[1, 1, 0, 0]]) == {"known": 0.0, "all": 0.0}


def test_alone_only_the_clusters_are_compared_and_heads_differ():
    good, bad = [2, 2, 3, 3], [2, 3, 2, 3]
    found = scores([2, 2, 3, 3], [bad, good], best=1)
    assert found["novel_alone"] == 1
    assert found["novel_alone_mean"] == pytest.approx(0.75)
    assert found["novel"] == found["all"] == 1
    assert "known" not in found
    assert scores([2, 2, 3, 3], [bad, good], best=0)["novel"] == 0.5


def test_new_samples_that_all_go_to_known_classes_score_nothing_together_but_something_alone():
    found = scores([2, 3], [[0, 1]])
    assert found["novel"] == 0
    assert found["novel_alone"] == 0.5  # all cosines of the clusters are equal: one cluster


def test_junk_is_not_measured():
    assert scores([0, -100, 2], [[0, 1, 2]])["all"] == 1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="truth"):
        scores([0], [[0]], truth="labels")
    with pytest.raises(InputError, match="best_head"):
        novel_class_scores(torch.nn.Linear(1, 1), [], lambda samples: {})
    with pytest.raises(InputError, match="no sample"):
        novel_class_scores(Given(torch.zeros(0, 1, CLASSES)), [], lambda samples: {})


def test_a_run_measures_such_a_model_by_matched_clusters_too():
    source, model = build_digits(known=5), NovelClassModel(NovelClassConfig(encoder=VIT, num_labels=5, num_novel=5))
    model.eval()
    found = evaluate_tasks(model, source.split("novel", 60), source.collator)["main"]
    true = novel_class_scores(model, source.split("novel", 60), source.collator)
    assert found["samples"] == 60
    assert found["accuracy"] == true["novel"] == true["all"]
    assert found["novel_alone"] == true["novel_alone"]
    with torch.no_grad():
        for clusters in model.head.novel:  # other numbers for the same clusters
            clusters.weight.copy_(clusters.weight.flip(0))
    again = evaluate_tasks(model, source.split("novel", 60), source.collator)["main"]
    assert {key: again[key] for key in ("accuracy", "novel_alone")} == {
        key: found[key] for key in ("accuracy", "novel_alone")
    }
