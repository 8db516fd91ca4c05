import json

from potstill.evaluate import measure


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
