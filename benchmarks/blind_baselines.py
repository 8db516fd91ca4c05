"""How much of the scenes' questions can be answered without looking, or while looking at the wrong picture.

    python benchmarks/blind_baselines.py                         # text alone
    python benchmarks/blind_baselines.py --model coca-scenes     # also a model, shown right and wrong pictures

Text alone is a logistic regression on words, word pairs and word triples, trained on 30,000 samples of the training
split and measured on 6,000 of the test split. Writes benchmarks/results/blind_baselines.csv.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict

import torch
from _record import RESULTS, origin, write_rows

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer

TRAIN, TEST = 30_000, 6_000
CHANCE = {"entailment": 1 / 3, "nlvr2": 1 / 2}
ALLOWED = {"entailment": 0.03, "nlvr2": 0.05}  # above chance


def load(split: str, task: str, number: int, **options) -> tuple[SceneDataset, list[dict]]:
    data = SceneDataset(split, (task,), size=number, image_size=32, **options)
    samples = []
    for start in range(0, number, 500):
        for sample in data.__getitems__(range(start, start + 500)):
            samples.append({key: sample[key] for key in ("text", "label", "kind")})
    return data, samples


def grams(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]


def text_only(task: str, **options) -> tuple[Counter, Counter]:
    """Return right answers and questions by kind."""
    data, train = load("train", task, TRAIN, **options)
    _, test = load("test", task, TEST, **options)
    common = Counter(gram for sample in train for gram in set(grams(sample["text"])))
    numbers = {gram: number for number, (gram, count) in enumerate(sorted(common.items())) if count >= 3}
    numbers = {gram: number for number, gram in enumerate(numbers)}

    def bags(samples):
        rows = [[numbers[g] for g in grams(s["text"]) if g in numbers] for s in samples]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1]
        return torch.tensor([n for row in rows for n in row]), offsets, torch.tensor([s["label"] for s in samples])

    torch.manual_seed(0)
    model = torch.nn.EmbeddingBag(len(numbers), len(data.task_labels[task]), mode="mean")
    torch.nn.init.zeros_(model.weight)
    steps = 300
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    words, offsets, labels = bags(train)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(words, offsets), labels) + 1e-5 * model.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    words, offsets, labels = bags(test)
    with torch.no_grad():
        hits = model(words, offsets).argmax(dim=1) == labels
    return tally(test, hits.tolist())


def tally(samples: list[dict], hits: list[bool]) -> tuple[Counter, Counter]:
    right, asked = Counter(), Counter()
    for sample, hit in zip(samples, hits):
        for key in ("all", sample["kind"]):
            asked[key] += 1
            right[key] += hit
    return right, asked


@torch.no_grad()
def with_model(name: str) -> dict[tuple[str, str], tuple[Counter, Counter]]:
    """Return counts for (task, "right picture" or "wrong picture"); wrong is that of another sample of the task."""
    from potstill.models.load import load_model

    model = load_model(name).eval()
    answers = list(model.config.task_labels["vqa"])
    results = {}
    for task in ("vqa", "entailment", "nlvr2"):
        data = SceneDataset("test", (task,), size=2_000, image_size=model.config.image_size)
        if data.answers != answers:
            raise SystemExit(f"{name} was made for other answers")
        collator = SceneCollator(build_tokenizer(languages=("en", "es")), data.task_labels, max_tokens=40)
        hits = defaultdict(list)
        samples = []
        for start in range(0, len(data), 100):
            part = data.__getitems__(range(start, start + 100))
            samples += part
            batch = collator(part)
            labels = batch[f"{task}_labels"]
            for shown, shift in (("right picture", 0), ("wrong picture", 7)):
                pixels = batch["pixel_values"].roll(shift, dims=0)
                output = model(
                    pixel_values=pixels,
                    image_mask=batch["image_mask"],
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                )
                hits[shown] += (output.task_logits[task].argmax(dim=1) == labels).tolist()
        for shown, found in hits.items():
            results[task, shown] = tally(samples, found)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a CoCa for the scenes: a shipped name or a folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    rows, leaks = [], []

    def report(task: str, scenes: str, baseline: str, right: Counter, asked: Counter) -> None:
        for kind in ["all", *sorted(set(asked) - {"all"})]:
            accuracy = right[kind] / asked[kind]
            error = (accuracy * (1 - accuracy) / asked[kind]) ** 0.5
            rows.append(
                {
                    "task": task,
                    "scenes": scenes,
                    "baseline": baseline,
                    "kind": kind,
                    "accuracy": f"{accuracy:.4f}",
                    "stderr": f"{error:.4f}",
                    "samples": asked[kind],
                }
            )
            print(f"{task:11} {scenes:12} {baseline:14} {kind:11} {accuracy:.3f} ± {error:.3f}  (n = {asked[kind]})")

    for scenes, arguments in (("1-4 objects", {}), ("1 object", {"max_objects": 1})):
        for task in ("vqa", "entailment", "nlvr2"):
            right, asked = text_only(task, **arguments)
            report(task, scenes, "text only", right, asked)
            if task in CHANCE and right["all"] / asked["all"] > CHANCE[task] + ALLOWED[task]:
                leaks.append(f"{task}, {scenes}")
    if options.model:
        for (task, shown), counts in with_model(options.model).items():
            report(task, "1-4 objects", f"{options.model}, {shown}", *counts)
    write_rows(RESULTS / "blind_baselines.csv", [row | where for row in rows])
    if leaks:
        raise SystemExit(f"the text gives the label away: {'; '.join(leaks)}")


if __name__ == "__main__":
    main()
