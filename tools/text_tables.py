"""Tables of what was measured on language models: fused losses, ways to teach, the teacher cache."""

from __future__ import annotations

from tables import RESULTS, read, table

WAYS = {
    "full": "whole logits",
    "fused": "fused",
    "checkpointed": "checkpointed chunks",
    "trl": "TRL, chunked",
    "liger": "Liger-Kernel, chunked, plain torch",
    "liger_compiled": "the same, compiled",
}
MEASURES = {
    "byte_perplexity": "perplexity a byte",
    "kl": "KL to the teacher",
    "agreement": "agreement, %",
    "rouge_l": "ROUGE-L, %",
    "own_reverse_kl": "reverse KL on its own text",
    "own_teacher_perplexity": "the teacher's perplexity there",
}
SHARES = ("agreement", "rouge_l")


def fused_losses() -> str:
    rows = read("fused_losses.csv")
    body = []
    for row in rows:
        cells = [f"`{row['loss']}`", WAYS[row["way"]], f"{float(row['cpu_seconds']):.1f}", row["cpu_to_full"]]
        body.append([*cells, f"{float(row['extra_mib']):,.0f}", row["memory_to_full"]])
    head = ["loss", "way", "s", "to whole logits", "extra MiB", "to whole logits"]
    first = rows[0]
    return (
        f"{int(first['tokens']):,} tokens, {int(first['vocabulary']):,} words, width {first['width']}, "
        f"{first['dtype']}, one thread of {first['machine']}; ways between two rows of whole logits ran in one "
        f"sitting:\n\n{table(head, body)}"
    )


def text_methods() -> str:
    if not (RESULTS / "text_methods.csv").is_file():
        return "Not measured yet."
    parts, rows = [], read("text_methods.csv")
    for pair in dict.fromkeys(r["pair"] for r in rows):
        here = [r for r in rows if r["pair"] == pair]
        of = {(r["system"], r["measure"]): r for r in here}
        body = []
        for system in dict.fromkeys(r["system"] for r in here):
            body.append([f"`{system}`", *(_cell(of.get((system, measure)), measure) for measure in MEASURES)])
        first = here[0]
        about = (
            f"`{pair}`: {first['steps']} steps of {first['batch_size']} from a student trained for "
            f"{first['start_steps']}, {max(int(r['seeds']) for r in here)} seeds, {first['samples']} held-out texts; "
            "± 95 %; * clearly another than `kd`, in pairs by seed:"
        )
        parts.append(f"{about}\n\n{table(['method', *MEASURES.values()], body)}")
    return "\n\n".join(parts)


def _cell(row: dict[str, str] | None, measure: str) -> str:
    if row is None:
        return "–"
    scale, places = (100, 1) if measure in SHARES else (1, 3)
    clear = "\\*" if row["minus_kd_clear"] == "yes" else ""
    return f"{scale * float(row['mean']):.{places}f} ± {scale * float(row['ci95']):.{places}f}{clear}"
