"""Tables of what was measured on language models: fused losses, ways to teach, the teacher cache."""

from __future__ import annotations

from tables import read, table

WAYS = {
    "full": "whole logits",
    "fused": "fused",
    "checkpointed": "checkpointed chunks",
    "trl": "TRL, chunked",
    "liger": "Liger-Kernel, chunked, plain torch",
    "liger_compiled": "the same, compiled",
}
# Measure -> its heading, the factor it is printed with, and the decimals.
MEASURES = {
    "byte_perplexity": ("perplexity a byte", 1, 3),
    "kl": ("KL to the teacher", 1, 3),
    "agreement": ("agreement, %", 100, 1),
    "rouge_l": ("ROUGE-L, %", 100, 1),
    "own_reverse_kl": ("reverse KL on its own text", 1, 3),
    "own_teacher_perplexity": ("the teacher's perplexity there", 1, 3),
}


def fused_losses() -> str:
    body, rows = [], read("fused_losses.csv")
    for r in rows:
        cells = [f"{int(r['tokens']):,}", f"`{r['loss']}`", WAYS[r["way"]], f"{float(r['cpu_seconds']):.1f}"]
        body.append([*cells, r["cpu_to_full"], f"{float(r['extra_mib']):,.0f}", r["memory_to_full"]])
    head = ["tokens", "loss", "way", "s", "to whole logits", "extra MiB", "to whole logits"]
    first = rows[0]
    return (
        f"{int(first['vocabulary']):,} words, width {first['width']}, {first['dtype']}, one thread of "
        f"{first['machine']}; ways between two rows of whole logits ran in one sitting:\n\n{table(head, body)}"
    )


def text_methods() -> str:
    parts, rows = [], read("text_methods.csv")
    pairs = list(dict.fromkeys(r["pair"] for r in rows))
    settings = dict.fromkeys((r["pair"], r["budget"]) for r in rows)
    for pair, budget in sorted(settings, key=lambda setting: pairs.index(setting[0])):
        here = [r for r in rows if (r["pair"], r["budget"]) == (pair, budget)]
        first = here[0]
        about = (
            f"`{pair}`: {budget} of {first['batch_size']} from a student trained for "
            f"{first['start_steps']}, {_seeds(here)} seeds, {first['samples']} held-out texts; "
            "± 95 %; * clearly another than `kd`, in pairs by seed:"
        )
        parts.append(f"{about}\n\n{_systems(here, 'method', MEASURES, 'kd')}")
    return "\n\n".join(parts)


def teacher_cache() -> str:
    rows = read("teacher_cache.csv")
    sizes = {(r["of"], r["vocabulary"], r["form"], r["k"]): r["bytes_per_token"] for r in rows if r["what"] == "bytes"}
    body = []
    for r in (r for r in rows if r["what"] == "bias" and r["form"] != "u8"):
        pair = "Zipf" if r["of"] == "zipf" else f"`{r['of']}`"
        size = sizes[r["of"], r["vocabulary"], r["form"], r["k"]]
        kept = f"{r['k']} {'drawn' if r['form'] == 'draws' else 'most likely'}, {float(size):.0f} bytes"
        bias = f"{float(r['kl']):.3f} ({100 * float(r['relative_bias']):+.0f} %)"
        grad = [f"{float(r[key]):.4f}" for key in ("gradient_cosine", "gradient_length")]
        body.append([pair, f"{int(r['vocabulary']):,}", kept, r["mode"], f"{float(r['exact_kl']):.3f}", bias, *grad])
    head = ["teacher", "words", "a token", "mode", "KL", "by the cache", "cosine of gradients", "their lengths"]
    (r,) = (r for r in rows if r["what"] == "speed")
    live, cached, alone = (float(r[f"cpu_step_{of}_ms"]) / 1000 for of in ("live", "cached", "student"))
    speed = (
        f"Teacher of {r['layers']} layers and student of {r['student_layers']}, width {r['width']}, "
        f"{int(r['vocabulary']):,} words, k = {r['k']}, batches of {r['batch_size']}, one thread of {r['machine']}: "
        f"{float(r['build_tokens_per_second']):,.0f} tokens a second are built; a batch is read "
        f"{float(r['read_times_faster']):,.0f} times as fast as the teacher makes it (goal 20); a step takes "
        f"{live:.2f} s with the teacher, {cached:.2f} s with the cache, and {alone:.2f} s with the teacher's "
        f"logits at hand: {float(r['share_of_possible']):.2f} of the gain there is (goal 0.9)."
    )
    return f"{table(head, body)}\n\n{speed}"


def alm_small() -> str:
    measures = {
        "bits_per_byte": ("bits a byte", 1, 3),
        "chunk_kl": ("KL of a chunk", 1, 4),
        "chunk_gap": ("gap of a chunk, nats", 1, 3),
    }
    parts, rows = [], read("alm_small.csv")
    for setting in dict.fromkeys((r["teacher"], r["vocabulary"], r["steps"]) for r in rows):
        here = [r for r in rows if (r["teacher"], r["vocabulary"], r["steps"]) == setting]
        first, body = here[0], _systems(here, "learns from", measures, "labels")
        parts.append(
            f"Teacher `{first['teacher']}` ({float(first['teacher_bits_per_byte']):.3f} bits a byte), student over "
            f"`{first['vocabulary']}`, {first['steps']} steps of {first['batch_size']}, {_seeds(here)} seeds; ± 95 %; "
            f"* clearly another than the labels alone, in pairs by seed:\n\n{body}"
        )
    return "\n\n".join(parts)


def dac_kl_small() -> str:
    rows = read("dac_kl_small.csv")
    measures = {
        "nll": ("held-out nats a byte", 1, 4),
        "rollout_nll": ("the teacher's nats a byte of what it writes", 1, 3),
        "outside": ("its mass outside 95 % of the teacher's, %", 100, 1),
        "kept": ("classes kept", 1, 1),
    }
    first = rows[0]
    return (
        f"{first['steps']} steps of {first['batch_size']}, {_seeds(rows)} seeds; ± 95 %; * clearly another than `kl`, "
        f"in pairs by seed:\n\n{_systems(rows, 'beside cross-entropy', measures, 'kl')}"
    )


def ddk_small() -> str:
    rows = read("ddk_small.csv")
    names = {"worst_ratio": "worst", "mean_ratio": "mean"}
    names |= {r["measure"]: r["measure"].removeprefix("ratio_") for r in rows if r["measure"].startswith("ratio_")}
    first = rows[0]
    body = _systems(rows, "domains", {key: (title, 1, 3) for key, title in names.items()}, "by-size")
    return (
        f"Perplexity of the student over that of the teacher; {first['steps']} steps of {first['batch_size']}, "
        f"{_seeds(rows)} seeds; ± 95 %; * clearly another than `by-size`, in pairs by seed:\n\n{body}"
    )


def _seeds(rows: list[dict[str, str]]) -> int:
    return max(int(r["seeds"]) for r in rows)


def _systems(rows: list[dict[str, str]], head: str, measures: dict[str, tuple[str, int, int]], against: str) -> str:
    """Return a table of a summary: a line for each system, a column for each measure."""
    of = {(r["system"], r["measure"]): r for r in rows}
    body = []
    for system in dict.fromkeys(r["system"] for r in rows):
        cells = [f"`{system}`"]
        for measure, (_, scale, places) in measures.items():
            row = of.get((system, measure))
            if row is None:
                cells.append("–")
                continue
            clear = "\\*" if row[f"minus_{against}_clear"] == "yes" else ""
            cells.append(f"{scale * float(row['mean']):.{places}f} ± {scale * float(row['ci95']):.{places}f}{clear}")
        body.append(cells)
    return table([head, *(title for title, *_ in measures.values())], body)
