"""What a teacher cache takes, loses and saves.

Three tables in one file, by the column ``what``:

- ``bytes``: bytes a token, by vocabulary, classes kept and form;
- ``bias``: each mode against the exact forward KL, and the angle between the gradients, on pairs of distributions whose
  ranks fall off as words do (Zipf), or with ``--teacher`` and ``--student`` on the texts of a real pair (then the file
  is gone on with, and speed is not measured again);
- ``speed``: tokens a second of a build; reading against the teacher's forward pass (goal: 20 times as fast); a step
  with the cache against the same step with the teacher's signal at hand (goal: 0.9 of its speed, which is 0.9 of the
  (t + s) / s that a teacher of t and a student of s seconds leave to be won). A Llama with random weights of the given
  sizes: what it says takes as long to compute as what a trained one says.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache.py

    python benchmarks/teacher_cache.py --teacher smollm2-135m-instruct --student FOLDER

Writes ``benchmarks/results/teacher_cache.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, origin, read_rows, write_rows
from _timing import interleave, ratio
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.data.sources import DataSource
from potstill.losses import TopK, cached_loss, kd_kl
from potstill.models.load import load_model
from potstill.objectives import OutputObjective, Where
from potstill.run.cache_building import CacheForm, build_cache
from potstill.teachers import LiveTeacher
from potstill.teachers.cache import CachedCollator, CachedTeacher, CacheReader, Field, NumberedDataset
from potstill.teachers.cache.codecs import arrays_of, decode, encode, vectors_of
from potstill.train import DistillModule

VOCABULARIES = (49_152, 151_936)
KEPT = (32, 64, 128)
DRAWS = 50


def zipf(tokens: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of a teacher whose words fall off as 1 / rank, each position in an order of its own, and of a
    student that is off by noise."""
    draws = torch.Generator().manual_seed(seed)
    ranks = torch.rand(tokens, vocabulary, generator=draws).argsort(-1) + 1
    sharpness = 1 + torch.rand(tokens, 1, generator=draws)
    teacher = -sharpness * ranks.float().log()
    return teacher, teacher + torch.randn(tokens, vocabulary, generator=draws)


def forms(vocabulary: int) -> Iterator[tuple[str, int, Field]]:
    """Yield name, k and field of every form that is compared."""
    common: dict[str, Any] = {"name": "logits", "shape": (vocabulary,), "vocab": vocabulary}
    for k in KEPT:
        for codec in ("fp16", "u8"):
            yield codec, k, Field(kind="top_k", codec=codec, k=k, temperatures=(1.0,), **common)
    yield "draws", DRAWS, Field(kind="drawn", codec="fp16", k=DRAWS, **common)


def kept(field: Field, logits: torch.Tensor) -> tuple[TopK, float]:
    """Return what comes back from disk, and the bytes a token takes there."""
    rows = encode(field, logits, None, torch.Generator().manual_seed(0))
    size = sum(array.nbytes for row in rows for array in row.values())
    arrays = {name: _joined([row[name] for row in rows]) for name in arrays_of(field)}
    found = decode(field, arrays, vectors_of(field, torch.zeros(len(logits), dtype=torch.int64).numpy()))
    tail = {1.0: found["tail"][:, 0]} if "tail" in found else {}
    return TopK(found["ids"], found["log_probs"], tail, field.vocab, found.get("counts")), size / len(logits)


def _joined(arrays: list[Any]) -> Any:
    import numpy

    return numpy.concatenate(arrays)


def losses(name: str, k: int, field: Field, teacher: torch.Tensor, student: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yield rows of bytes and of every mode's bias."""
    targets, size = kept(field, teacher)
    setting = {"vocabulary": field.vocab, "form": name, "k": k}
    yield {"what": "bytes", **setting, "bytes_per_token": round(size, 2)}
    student = student.detach().requires_grad_()
    exact = kd_kl(student, teacher)
    (wanted,) = torch.autograd.grad(exact, student)
    for mode in ("sampled",) if field.kind == "drawn" else ("tail", "renormalised"):
        value = cached_loss(student, targets, mode=mode)
        (grad,) = torch.autograd.grad(value, student)
        cosine = torch.nn.functional.cosine_similarity(grad.flatten(), wanted.flatten(), dim=0)
        yield {
            **{"what": "bias", **setting, "mode": mode, "exact_kl": round(exact.item(), 5)},
            **{"kl": round(value.item(), 5), "relative_bias": round(value.item() / exact.item() - 1, 5)},
            **{"gradient_cosine": round(cosine.item(), 5)},
            "gradient_length": round((grad.norm() / wanted.norm()).item(), 5),
        }


def of_models(teacher: str, student: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of two models at the labelled positions of held-out texts."""
    from potstill.data.texts_source import build_texts

    source = build_texts(teacher_model=teacher)
    batch = source.collator([source.split("test")[i] for i in range(max(2, tokens // 50))])
    where = batch["labels"][:, 1:] != -100
    found = []
    for name in (teacher, student):
        with torch.no_grad():
            logits = load_model(name)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found.append(logits[:, :-1][where][:tokens].float())
    return found[0], found[1]


class Tokens(torch.utils.data.Dataset):
    """Rows of random tokens, of different lengths."""

    def __init__(self, rows: int, length: int, vocabulary: int):
        self.rows, self.length, self.vocabulary = rows, length, vocabulary

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        draws = torch.Generator().manual_seed(index)
        size = int(torch.randint(self.length // 2, self.length + 1, (1,), generator=draws))
        return torch.randint(self.vocabulary, (size,), generator=draws)


def collate(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in samples], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def llama(options: argparse.Namespace, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(layers)
    sizes = {
        "hidden_size": options.width,
        "intermediate_size": 8 * options.width // 3,
        "vocab_size": options.vocabulary,
    }
    heads = {"num_attention_heads": options.width // 64, "num_key_value_heads": options.width // 64}
    config = LlamaConfig(num_hidden_layers=layers, **sizes, **heads, initializer_range=0.2, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of speeds."""
    data = Tokens(options.rows, options.length, options.vocabulary)
    source = DataSource(make=lambda split, size: data, collator=collate)
    objective = {"loss": "kd_kl", "name": "word", "on": "logits", "labels": "labels", "shift": True}
    with tempfile.TemporaryDirectory() as folder:
        llama(options, options.layers).save_pretrained(f"{folder}/teacher")
        llama(options, options.student_layers).save_pretrained(f"{folder}/student")
        recipe = {
            **{"version": 1, "teacher": {"model": f"{folder}/teacher"}, "objectives": [objective]},
            "student": {"builder": "pretrained", "model": f"{folder}/student"},
            "train": {"batch_size": options.batch_size},
        }
        moments: list[tuple[float, int]] = []

        def note(event: Any) -> None:
            if event["event"] == "rows":
                moments.append((time.perf_counter(), event["done"]))

        started = time.perf_counter()
        build_cache(recipe, f"{folder}/cache", source=source, form=CacheForm(options.k, batch_size=options.batch_size),
                    progress=note)  # fmt: skip
        # From the first batch's end to the last row's: what comes before is set-up.
        seconds, rows = moments[-1][0] - moments[0][0], moments[-1][1] - moments[0][1]
        reader = CacheReader(f"{folder}/cache")
        info = reader.info()
        tokens = info["fields"][0]["positions"]
        row = measure_steps(options, reader, data, f"{folder}/teacher", f"{folder}/student")
        return {
            **{"what": "speed", "vocabulary": options.vocabulary, "k": options.k, "form": "fp16"},
            **{"width": options.width, "layers": options.layers, "student_layers": options.student_layers},
            **{"rows": len(data), "tokens": tokens, "batch_size": options.batch_size},
            "bytes_per_token": round(info["bytes"] / tokens, 2),
            "build_tokens_per_second": round(tokens * rows / len(data) / max(seconds, 1e-9), 1),
            "build_seconds": round(moments[-1][0] - started, 2),
            **row,
        }


def measure_steps(options: argparse.Namespace, reader: CacheReader, data: Tokens, *models: str) -> dict[str, Any]:
    teacher, student = (load_model(name) for name in models)
    objective = OutputObjective("word", kd_kl, "logits", where=Where(labels="labels"), shift=True)
    module = DistillModule(student.train(), [objective])
    live = LiveTeacher(teacher, outputs=["logits"])
    cached = CachedTeacher(reader, outputs=["logits"])
    collator = CachedCollator(collate, {"teacher": (reader, cached.wanted)})
    samples = NumberedDataset(data).__getitems__(range(min(options.batch_size, len(data))))
    batch = collate([sample for _, sample in samples])
    signal = live.signal(batch)

    def step(one: dict[str, Any], seen: Any) -> None:
        module.zero_grad(set_to_none=True)
        module(one, seen).loss.backward()

    def from_cache() -> None:
        made = collator(samples)
        step(made, cached.signal(made))

    works = [
        lambda: live.signal(batch),
        lambda: cached.signal(collator(samples)),
        lambda: step(batch, live.signal(batch)),
        from_cache,
        lambda: step(batch, signal),
    ]
    clocks = interleave(works, options.repetitions, warm_up=1)
    forward, read, with_teacher, with_cache, alone = (clock.processor for clock in clocks)
    won = statistics.median(with_teacher) / statistics.median(with_cache)
    possible = statistics.median(with_teacher) / statistics.median(alone)
    return {
        "cpu_teacher_ms": round(1000 * statistics.median(forward), 2),
        "cpu_read_ms": round(1000 * statistics.median(read), 2),
        "read_times_faster": ratio(forward, read)["ratio"],
        "cpu_step_live_ms": round(1000 * statistics.median(with_teacher), 2),
        "cpu_step_cached_ms": round(1000 * statistics.median(with_cache), 2),
        "cpu_step_student_ms": round(1000 * statistics.median(alone), 2),
        "share_of_possible": round(won / possible, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="positions for bytes and bias")
    parser.add_argument("--teacher", help="a language model whose answers are kept")
    parser.add_argument("--student", help="the model that is compared with it")
    parser.add_argument("--vocabulary", type=int, default=49_152, help="of the models that are timed")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--student-layers", type=int, default=15)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "teacher_cache.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    if options.teacher is None:
        rows, pairs = [], [(v, *zipf(options.tokens, v, seed=0)) for v in VOCABULARIES]
    else:
        rows = [row for row in read_rows(options.out) if row["of"] != options.teacher]
        teacher, student = of_models(options.teacher, options.student or options.teacher, options.tokens)
        pairs = [(teacher.shape[1], teacher, student)]
    for vocabulary, teacher, student in pairs:
        for name, k, field in forms(vocabulary):
            for row in losses(name, k, field, teacher, student):
                rows.append({**row, "tokens": len(teacher), "of": options.teacher or "zipf", **where})
                print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if options.teacher is None:
        row = speed(options)
        rows.append({**row, "of": "random Llama", **where})
        print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
