"""A toy recipe on real digits."""

FIELDS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def toy_recipe(teacher="nowhere", **changes):
    """A mapping: student, digits, a term on the teacher's logits and one on labels."""
    student = {"builder": "new", "family": "resnet", "architecture": "ResNetForImageClassification", "fields": FIELDS}
    return {
        "version": 1,
        "name": "toy",
        "teacher": {"model": str(teacher)},
        "student": student,
        "data": {"source": "digits", "pool": 64, "augment": "none"},
        "objectives": [
            {"loss": "kd_kl", "name": "kd", "on": "logits", "temperature": 4.0, "weight": 2.0},
            {"loss": "cross_entropy", "name": "ce", "on": "logits", "labels": "labels"},
        ],
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 1, "threads": 1},
        "evaluate": {"split": "test", "splits": ["heldout_style"], "samples": 32, "shown": 0, "attention": False},
        **changes,
    }
