"""Writes a run folder as a real run leaves it: numbers follow plausible curves, files follow the documented schema."""

import base64
import io
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

MODULES = ("image_encoder", "text_decoder", "multimodal_decoder")
TEACHER_BLOCKS = {"image_encoder": 6, "text_decoder": 4, "multimodal_decoder": 4}
GAIN = {"image_encoder": 0.012, "text_decoder": 0.006, "multimodal_decoder": 0.02}
TEACHER_SCORES = {"caption": 0.938, "vqa": 0.972, "entailment": 0.931, "nlvr2": 0.874}


def write_fake_run(
    folder, name="optima", *, seed=0, steps=600, every=5, period=20, has_policy=True, has_teacher=True, kept=0.96
):
    """Write all files below ``folder`` and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    dump(folder / "plan.json", _plan(name, steps, has_policy, has_teacher))
    dump(folder / "metrics.json", _metrics(rng, kept, has_policy, has_teacher))
    dump(folder / "environment.json", _environment(name))
    dump(folder / "samples.json", _samples(rng, has_teacher))
    if has_teacher:
        dump(folder / "attention.json", _attention(random.Random(seed + 1)))
    events = _history(rng, steps, every, period, has_policy, has_teacher)
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "recipe.yaml").write_text(
        _RECIPE.format(name=name, steps=steps, policy="optima" if has_policy else "none")
    )
    return folder


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def change(path, edit):
    """Load a JSON file, let ``edit`` change it in place, and write it back."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    dump(path, value)


def picture(seed, size=64):
    """A PNG data URI of two coloured shapes on a plain ground."""
    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), (244, 240, 232))
    draw = ImageDraw.Draw(image)
    for corner in rng.sample([(4, 4), (36, 4), (4, 36), (36, 36)], 2):
        colour = tuple(rng.randrange(30, 220) for _ in range(3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((*corner, corner[0] + 23, corner[1] + 23), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plan(name, steps, has_policy, has_teacher):
    pairs = {
        module: [
            {
                "student": f"{module}.blocks.{number}",
                "teacher": f"{module}.blocks.{(number + 1) * blocks // 2 - 1}",
                "student_shape": [64, 36, 96],
                "teacher_shape": [64, 36, 160],
                "projector": True,
            }
            for number in range(2)
        ]
        for module, blocks in TEACHER_BLOCKS.items()
    }
    predictions = [
        {
            "name": task,
            "loss": "kd_kl",
            "role": "prediction",
            "weight": 1.0,
            "module": None,
            "on": f"task_logits.{task}",
        }
        for task in TEACHER_SCORES
    ]
    hidden = [
        {"name": f"hidden.{module}", "loss": "hint_mse", "role": "hidden", "weight": 0.1, "module": module, "on": None}
        for module in MODULES
    ]
    return {
        "version": 1,
        "name": name,
        "steps": steps,
        "teacher": {"model": "builtin:scenes-teacher", "class": "CocaModel", "parameters": 3_912_448}
        if has_teacher
        else None,
        "student": {"model": "depth 2/2/2, width 96", "class": "CocaModel", "parameters": 1_204_224},
        "modules": [{"name": module, "pairs": pairs[module]} for module in MODULES] if has_policy else [],
        "objectives": predictions + (hidden if has_policy else []),
        "parts": [{"name": f"projector.{module}", "parameters": 30_720} for module in MODULES] if has_policy else [],
        "policy": {"name": "optima", "arms": list(MODULES), "gamma": 0.98} if has_policy else None,
        "data": {"name": "scenes", "seed": 0},
        "train": {"batch_size": 64, "learning_rate": 1e-3},
    }


def _metrics(rng, kept, has_policy, has_teacher):
    def tasks(share):
        scores = {}
        for task, best in TEACHER_SCORES.items():
            value = best * (share + rng.uniform(-0.02, 0.02)) if share < 1 else best
            stderr = math.sqrt(value * (1 - value) / 1000)
            scores[task] = {"objects" if task == "caption" else "accuracy": value, "stderr": stderr, "samples": 1000}
        scores["caption"]["exact"] = 0.74 * share**3
        kinds = ("what", "where", "count", "colour")
        scores["vqa"]["kinds"] = {kind: min(1, scores["vqa"]["accuracy"] + rng.uniform(-0.06, 0.03)) for kind in kinds}
        return scores

    fidelity = {
        task: {"agreement": kept - 0.03, "kl": 0.4 * (1 - kept) + 0.05, "ece": 0.031} for task in TEACHER_SCORES
    }
    cka = [
        {
            "module": module,
            "student": f"{module}.blocks.{number}",
            "teacher": f"{module}.blocks.{(number + 1) * blocks // 2 - 1}",
            "cka": min(0.99, rng.uniform(0.55, 0.8) + (0.15 if has_policy else 0)),
        }
        for module, blocks in TEACHER_BLOCKS.items()
        for number in range(2)
    ]
    student = {
        "role": "student",
        "class": "CocaModel",
        "tasks": tasks(kept),
        "fidelity": fidelity if has_teacher else None,
        "cka": cka if has_teacher else None,
        "cost": {
            "parameters": 1_204_224,
            "bytes": 4_831_224,
            "flops_per_sample": 71_300_000,
            "ms_per_sample": 1.42,
            "peak_memory_bytes": 212_000_000,
        },
    }
    teacher = {
        "role": "teacher",
        "class": "CocaModel",
        "tasks": tasks(1),
        "fidelity": None,
        "cka": None,
        "cost": {
            "parameters": 3_912_448,
            "bytes": 7_842_100,
            "flops_per_sample": 268_000_000,
            "ms_per_sample": 4.31,
            "peak_memory_bytes": None,
        },
    }
    return {"version": 1, "models": {"teacher": teacher, "student": student} if has_teacher else {"student": student}}


def _environment(name):
    return {
        "python": "3.12.4",
        "platform": "Linux-6.1-x86_64",
        "cpu": "a processor",
        "threads": 2,
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "potstill": "0.1.0",
        "commit": "3512667",
        "world_size": 1,
        "deterministic": True,
        "started": "2026-11-21T10:00:00Z",
        "command": f"potstill distill {name}.yaml --out runs/{name}",
    }


def _samples(rng, has_teacher):
    objects = ("a red apple", "a blue cup", "a green frog", "two ducks", "an umbrella")
    places = ("top left", "top right", "bottom left", "bottom right")
    made = []
    for number in range(10):
        task = list(TEACHER_SCORES)[number % 4]
        first, second = random.Random(number).sample(objects, 2)
        place = places[number % 4]
        if task == "caption":
            text, truth, wrong = None, f"{first} at the {place} and {second}", f"{first} at the {place} and a kite"
        elif task == "vqa":
            text, truth, wrong = f"what is in the {place} corner?", first, second
        elif task == "entailment":
            text, truth, wrong = f"there is {first} at the {place}", "entailment", "neutral"
        else:
            text, truth, wrong = f"both pictures show {first}", "true", "false"
        answers = {"teacher": truth if number != 7 else wrong} if has_teacher else {}
        answers["student"] = wrong if rng.random() < 0.3 else truth
        images = [picture(number)] if task != "nlvr2" else [picture(number), picture(number + 100)]
        made.append({"task": task, "images": images, "text": text, "truth": truth, "answers": answers})
    return made


def _attention(rng):
    """Cross-attention over two pictures and one, words over words, keys without a place; likeness and distances."""

    def spread(n):
        drawn = [rng.random() ** 4 for _ in range(n)]
        return [round(1000 * value / sum(drawn)) for value in drawn]

    def both(n, times):
        return {side: [spread(n) for _ in range(times)] for side in ("teacher", "student")}

    words = ["a", "red", "apple", "at", "the", "left"]
    taps = {
        "cross": "multimodal_decoder.blocks.1@cross_attention",
        "self": "text_decoder.blocks.1@self_attention",
        "memory": "reader.blocks.1@cross_attention",
    }
    pairs = [
        {
            "name": tap.split(".")[0],
            "student": tap,
            "teacher": tap.replace(".1@", ".3@"),
            "queries": "words",
            "keys": keys,
            "tau": 1.0,
            "similarity": [[round(rng.random(), 3) for _ in range(3)] for _ in range(4)],
            "alignment": [[0.333] * 3 for _ in range(4)],
        }
        for tap, keys in zip(taps.values(), ("picture", "words", "other"))
    ]
    shown = []
    for number, task in enumerate(("caption", "nlvr2")):
        pictures = [picture(number + 10 * i) for i in range(1 + (task == "nlvr2"))]
        rows = [{"query": word, **both(36, len(pictures))} for word in words]
        rows.append({"query": "apple", "teacher_head": 2, "student_head": 1, **both(36, len(pictures))})
        square = {"queries": words, "keys": words, "rows": [both(6, len(words))]}
        maps = [
            {"pair": 0, "kind": "picture", "grid": [6, 6], "rows": rows},
            {"pair": 1, "kind": "words", **square},
            {"pair": 2, "kind": "bars", "rows": [{"query": "red", "teacher": spread(20), "student": spread(20)}]},
        ]
        shown.append({"task": task, "images": pictures, "maps": maps})
    distance = [
        {
            "module": module,
            "student": f"{module}.blocks.{layer}@self_attention",
            "teacher": f"{module}.blocks.{2 * layer + 1}@self_attention",
            "unit": unit,
            "student_heads": [round(1 + 2 * rng.random(), 3) for _ in range(3)],
            "teacher_heads": [round(1 + 2 * rng.random(), 3) for _ in range(4)],
        }
        for module, unit in (("image_encoder", "patches"), ("text_decoder", "words"))
        for layer in range(2)
    ]
    return {"version": 1, "samples": 64, "notes": [], "pairs": pairs, "distance": distance, "shown": shown}


def _history(rng, steps, every, period, has_policy, has_teacher):
    rest = {module: 1.0 for module in MODULES}
    count = {module: 0.0 for module in MODULES}
    total = {module: 0.0 for module in MODULES}
    arm, reference, number = MODULES[0] if has_policy else None, 1.6, 0
    for step in range(every, steps + 1, every):
        speed = 0.004 if has_policy else 0.003
        terms = {
            task: {"value": (2.6 - 0.3 * place) * math.exp(-speed * step) + 0.12 + rng.gauss(0, 0.03), "weight": 1.0}
            for place, task in enumerate(TEACHER_SCORES)
        }
        if has_policy:
            terms[f"hidden.{arm}"] = {"value": 0.9 * rest[arm] + 0.05 + rng.gauss(0, 0.01), "weight": 0.1}
        yield {
            "event": "step",
            "step": step,
            "arm": arm,
            "loss": sum(term["value"] * term["weight"] for term in terms.values()),
            "terms": terms,
            "learning_rate": 1e-3 * (1 - step / steps),
            "seconds": 0.31 * step,
        }
        if not has_policy or step % period:
            continue
        reward = GAIN[arm] * rest[arm] + rng.gauss(0, 0.004)
        rest[arm] *= 0.96
        reference *= 1 - reward
        for known in MODULES:
            count[known], total[known] = 0.98 * count[known], 0.98 * total[known]
        count[arm], total[arm] = count[arm] + 1, total[arm] + reward
        posterior = {
            known: {
                "mean": total[known] / count[known] if count[known] else 0.0,
                "std": 0.006 / math.sqrt(max(count[known], 0.01)),
                "count": count[known],
            }
            for known in MODULES
        }
        number += 1
        drawn = {known: rng.gauss(p["mean"], p["std"]) for known, p in posterior.items()}
        following = MODULES[number % 3] if number < 9 else max(drawn, key=drawn.get)
        yield {
            "event": "round",
            "step": step,
            "round": number,
            "arm": arm,
            "reward": reward,
            "reference": reference,
            "probe": {task: terms[task]["value"] for task in TEACHER_SCORES},
            "posterior": posterior,
            "next_arm": following,
        }
        arm = following


_RECIPE = """\
version: 1
name: {name}
teacher: builtin:scenes-teacher
student: {{build: depth, blocks: 2, width: 96}}
data: {{name: scenes, tasks: [caption, vqa, entailment, nlvr2]}}
objectives:
  - {{loss: kd_kl, on: caption_logits, weight: 1.0}}
policy: {policy}
train: {{steps: {steps}, batch_size: 64, learning_rate: 0.001}}
"""
