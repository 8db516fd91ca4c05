"""Stands in for ``potstill distill``: writes what a run leaves, with a score made from loss, steps and seed."""

import json
import sys
import time
from pathlib import Path

import yaml

words = sys.argv[1:]
recipe = yaml.safe_load(Path(words[1]).read_text())
out = Path(words[words.index("--out") + 1])
seed = next((int(w.removeprefix("seed=")) for w in words if w.startswith("seed=")), recipe["seed"])
loss, steps = recipe["objectives"][0]["loss"], recipe["train"]["steps"]

out.mkdir(parents=True, exist_ok=True)
with (out / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\n")
if loss == "reverse_kl":
    sys.exit("potstill: objectives[0]: does not fit. Try another.")
(out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
hold = out.parents[3] / "hold"
while hold.exists():
    time.sleep(0.01)
score = 0.5 + {"kd_kl": 0.10, "dkd": 0.13, "cross_entropy": 0.02}.get(loss, 0.0) + 0.01 * (seed % 3) + steps / 1e4
score += 0.2 * (recipe["train"]["learning_rate"] > 2e-3)
task = {"main": {"accuracy": round(score, 6), "samples": 64}}
student = {
    "role": "student", "class": "Toy", "tasks": task, "cost": {"parameters": recipe["train"]["batch_size"] * 1000},
    "fidelity": {"main": {"kl": 1 - score, "agreement": score}}, "splits": {"heldout_style": {"tasks": task}},
}  # fmt: skip
teacher = {**student, "role": "teacher", "tasks": {"main": {"accuracy": 0.9, "samples": 64}}, "fidelity": None}
stages = [{"stage": s["name"], "steps": s["train"]["steps"]} for s in recipe["stages"] or ()]
data = {"source": "digits", "classes": 10, "train_samples": 64, "image_size": 28}
plan = {"steps": steps, "train": recipe["train"], "data": data, **({"stages": stages} if stages else {})}
events = []
for one in stages or [plan]:
    event = {"event": "step", "step": one["steps"], "seconds": 0.5 * one["steps"]}
    events.append({**event, "stage": one["stage"]} if stages else event)
made = {"cpu": "toy", "cores": 2, "gpu": None, "threads": 1, "commit": "abc", "started": "2026-11-22T00:00:00+00:00"}
(out / "plan.json").write_text(json.dumps(plan))
(out / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
(out / "environment.json").write_text(json.dumps(made))
metrics = {"split": recipe["evaluate"]["split"], "models": {"student": student, "teacher": teacher}}
(out / "metrics.json").write_text(json.dumps(metrics))
