import json

from torch import nn

from potstill.evaluate import measure, sample_answers


def test_a_student_has_a_whole_entry_of_the_metrics_file(scenes):
    pairs = [("image_encoder", "image_encoder.blocks.1", "image_encoder.blocks.0")]
    entry = measure(
        scenes.model(1, image_layers=2),
        teacher=scenes.model(2),
        dataset=scenes.data,
        collator=scenes.collator,
        batch_size=16,
        max_samples=24,
        pairs=pairs,
    )
    assert set(entry) == {"role", "class", "tasks", "fidelity", "cka", "cost"}
    assert json.dumps(entry)
    assert entry["role"] == "student"
    assert entry["class"] == "CocaModel"
    assert set(entry["fidelity"]) == set(entry["tasks"])
    assert entry["cka"][0]["student"] == "image_encoder.blocks.1"
    assert -1 <= entry["cka"][0]["cka"] <= 1
    assert set(entry["cost"]) == {"parameters", "bytes", "flops_per_sample", "ms_per_sample", "peak_memory_bytes"}


def test_a_teacher_has_no_fidelity_and_no_cka(scenes):
    entry = measure(scenes.model(), dataset=scenes.data, collator=scenes.collator, tasks=["vqa"], max_samples=12)
    assert entry["role"] == "teacher"
    assert entry["fidelity"] is None
    assert entry["cka"] is None
    assert list(entry["tasks"]) == ["vqa"]


def test_all_models_are_costed_on_the_same_batch(scenes):
    costs = [
        measure(scenes.model(seed), dataset=scenes.data, collator=scenes.collator, tasks=["vqa"], max_samples=12)
        for seed in (1, 2)
    ]
    assert costs[0]["cost"]["flops_per_sample"] == costs[1]["cost"]["flops_per_sample"]


def test_models_with_an_open_signature_are_given_the_keys_one_names(scenes):
    class Open(nn.Module):
        """Forwards whatever it gets, as wrappers do; it must not be given sample ids."""

        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, **batch):
            return self.model(**batch)

    models = {"teacher": Open(scenes.model(1)), "student": Open(scenes.model(2))}
    keys = ["pixel_values", "image_mask", "input_ids", "attention_mask"]
    common = {"dataset": scenes.data, "collator": scenes.collator, "max_samples": 12}
    taps = [("image_encoder", "model.image_encoder.blocks.0", "model.image_encoder.blocks.0")]
    entry = measure(models["student"], teacher=models["teacher"], pairs=taps, inputs=iter(keys), **common)
    plain = measure(scenes.model(2), teacher=scenes.model(1), **common)
    assert entry["tasks"]["vqa"] == plain["tasks"]["vqa"]
    assert entry["fidelity"] == plain["fidelity"]
    assert entry["cost"]["flops_per_sample"] == plain["cost"]["flops_per_sample"]
    assert sample_answers(models, scenes.data, scenes.collator, n=2, looked_at=8, inputs=iter(keys))
