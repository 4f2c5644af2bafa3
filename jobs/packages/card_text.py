"""The card as a page, `card.md`: Markdown whose front matter the Hugging Face Hub reads."""

from collections.abc import Iterable
from typing import Any

import yaml

from robustlib.checks.thresholds import FAIL
from robustlib.number_text import counted
from robustlib.packages.manifest import ONNX, seal_of
from robustq.jobs.packages.card import Card, Evaluation, Program, Reattack, Share
from robustq.jobs.packages.explanations import explanations_text
from robustq.jobs.packages.markdown_table import cell, table
from robustq.jobs.packages.monitoring_text import monitoring_text
from robustq.jobs.packages.snippet import snippet
from robustq.jobs.packages.stored_numbers import attack_words as words
from robustq.jobs.text.numbers import eps_text, unless_failed

TAGS = ["adversarial-robustness", "image-classification", "robustq"]
FOLDER = "."
NOTED = {"clean": "Images as they are", "transfer": "Attacked images", "square": "Square"}
SEALED = "The card, `card.json`, without its list of files:"


def page(card: Card) -> str:
    """The whole page. The digest is not on it: it is of the card, which has the page's hash."""
    parts = [front_matter(card), f"# {card.name}", *(f"> **{line}**" for line in card.warnings)]
    parts += [about(card), programs_text(card), numbers_text(card), classes_text(card), audits_text(card)]
    parts += [
        training_text(card),
        explanations_text(card.explanations),
        monitoring_text(card.monitoring),
        latency_text(card),
        use_text(card),
        not_said_text(card),
    ]
    parts.append(hashes_text(card))
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: Card) -> str:
    """The Hub's metadata: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    task = {"type": "image-classification", "name": "Image Classification"}
    data = {"type": card.data.name, "name": card.data.name, "split": card.data.split, "revision": card.data.sha256}
    results = [{"task": task, "dataset": data, "metrics": metrics}] if (metrics := list(metrics_of(card))) else []
    found: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": "image-classification", "tags": TAGS}
    if results:
        found["model-index"] = [{"name": card.name, "results": results}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=1000)}---"


def metrics_of(card: Card) -> Iterable[dict[str, Any]]:
    if card.clean is not None:
        yield metric("accuracy", "Clean accuracy", card.clean, {})
    for one in card.evaluations:
        if one.kind == "clean" or one.verdict == FAIL:
            continue  # whoever reads metrics alone would take the number for what it is not
        args = {"attack": one.attack, "norm": one.norm, "eps": one.eps, "recipe": one.recipe, "seed": one.seed}
        args |= {"kind": one.kind, "verdict": one.verdict, "of": "network"}
        name = {"certificate": "Certified accuracy", "corruption": "Accuracy under corruption"}.get(
            one.kind, "Robust accuracy"
        )
        yield metric(name.lower().replace(" ", "-"), f"{name} ({words(one)})", one.robust, args)
    for program in card.programs:
        for row in program.rows if card.evaluated else ():
            args = {"attack": row.attack, "norm": row.norm, "eps": row.eps, "queries": row.queries, "seed": row.seed}
            args |= {"kind": row.what, "of": program.file}
            kind = "accuracy" if row.what == "clean" else "robust-accuracy"
            yield metric(kind, f"Accuracy of {program.file} ({row_words(row)})", row.program, args)


def metric(kind: str, name: str, value: Share, args: dict[str, Any]) -> dict[str, Any]:
    args = {"n": value.n, "low": value.low, "high": value.high} | {k: v for k, v in args.items() if v is not None}
    return {"type": kind, "name": name, "value": value.accuracy, "args": args}


def row_words(row: Reattack) -> str:
    if row.what == "clean":
        return "images as they are"
    where = f"{row.norm}, eps {eps_text(row.eps)}" if row.eps is not None else ""
    if row.what == "square":
        return f"Square on the program, {where}, {counted(row.queries or 0, 'query', 'queries')}"
    return f"attacked images of the network, {where}"


def trusted(one: Evaluation) -> str:
    return unless_failed(percent(one.robust), one.robust.accuracy, one.verdict)


def percent(value: Share) -> str:
    return f"{100 * value.accuracy:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def about(card: Card) -> str:
    of, takes = card.network, card.preprocessing
    what = of.arch or f"the user's {of.code.name if of.code else 'code'}"
    defence = "".join(f", behind {part.name}" for part in of.defence)
    lines = [
        f"A network ({what}{defence}, {of.parameters:,} parameters) for "
        f"{counted(len(card.classes), 'class', 'classes')} of {takes.size[0]}x{takes.size[1]} images "
        f"({takes.colours}), packaged {card.made_at} by robustq {card.made_with['robustq']}.",
        f"Images go in as {takes.dtype}, {takes.layout}, in [0, 1], under the name `{takes.input}`; logits come out as "
        f"`{takes.output}`. From bytes: {takes.from_bytes}.",
        f"Classes, in order: {', '.join(cell(name) for name in card.classes)}.",
    ]
    if of.normalisation is not None:
        mean, std = (", ".join(f"{one:.4g}" for one in of.normalisation[name]) for name in ("mean", "std"))
        lines.append(f"Its first layer subtracts {mean} and divides by {std}, by channel.")
    return "\n\n".join(lines)


def programs_text(card: Card) -> str:
    parts = ["## What runs, attacked again"]
    for program in card.programs:
        parts.append(program_text(program))
    return "\n\n".join(parts)


def program_text(program: Program) -> str:
    limit = "" if program.tolerance is None else f" (at most {program.tolerance:.3g} is allowed)"
    difference = f"{program.largest_difference:.3g}{limit}"
    head = (
        f"`{program.file}`, {program.precision}, {program.runtime}: the largest difference of a logit from the "
        f"network's is {difference}."
    )
    rows = [
        (
            row_words(row),
            row.program.n,
            percent(row.program),
            "" if row.network_accuracy is None else f"{100 * row.network_accuracy:.1f} %",
            "" if row.largest_difference is None else f"{row.largest_difference:.3g}",
            ", ".join(map(str, row.differing[:20])) + (" ..." if len(row.differing) > 20 else "") or "none",
        )
        for row in program.rows
    ]
    columns = ("images", "n", "accuracy of the program", "of the network", "largest difference", "images that differ")
    notes = " ".join(dict.fromkeys(f"{NOTED[row.what]}: {row.note}." for row in program.rows if row.note))
    return "\n\n".join(part for part in (head, table(columns, rows), notes, f"Limits: {program.why}.") if part)


def numbers_text(card: Card) -> str:
    if not card.evaluations:
        return ""
    rows = [
        (one.job, words(one), one.robust.n, trusted(one), percent(one.clean), one.verdict, one.seed, one.recipe)
        for one in card.evaluations
    ]
    head = ("job", "attack", "n", "robust accuracy", "clean accuracy", "verdict", "seed", "recipe")
    bad = [
        f"- job {one.job}: {check.name} {check.verdict} ({check.note})"
        for one in card.evaluations
        for check in one.checks
    ]
    checks = ["Checks that did not pass:\n\n" + "\n".join(bad)] if bad else []
    told = "Intervals are Wilson's, 95 %. Under `certify` the accuracy is certified, from below."
    return "\n\n".join(["## The network's numbers", table(head, rows), told, *checks])


def classes_text(card: Card) -> str:
    if not card.clean_by_class:
        return ""
    rows = [
        (one.name, one.n, "" if one.accuracy is None else f"{100 * one.accuracy:.1f} %") for one in card.clean_by_class
    ]
    return "\n\n".join(["## Clean accuracy by class", table(("class", "n", "accuracy"), rows)])


def audits_text(card: Card) -> str:
    parts = []
    for one in card.evaluations:
        if one.audit is not None:
            cause = f" Cause: {one.audit.cause}." if one.audit.cause else ""
            naive, adaptive = 100 * one.audit.naive_robust_accuracy, 100 * one.audit.adaptive_robust_accuracy
            parts.append(
                f"- job {one.job} ({words(one)}): {one.audit.verdict}; a naive attack leaves {naive:.1f} %, the best "
                f"of {counted(len(one.audit.tried), 'attack')} {adaptive:.1f} %.{cause}"
            )
    return "\n\n".join(["## Audit", "\n".join(parts)]) if parts else ""


def training_text(card: Card) -> str:
    if card.training is None:
        return ""
    of = card.training
    known = {name: value for name, value in of.settings.items() if value not in (None, {}, "")}
    lines = [f"- {name}: {setting_text(name, value)}" for name, value in known.items()]
    ends = "; ".join(f"{name} {value:.3f}" for name, value in of.validation.items())
    told = f"Seed {of.seed}, {of.seconds:.0f} s on {of.device}" + (
        f". On images held out, at its end: {ends}" if ends else ""
    )
    return "\n\n".join(["## Training", "\n".join(lines), f"{told}."])


def setting_text(name: str, value: Any) -> str:
    """A setting as a study has it: a radius as n/255, parameters one after the other."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting_text(key, one)}" for key, one in value.items())
    return eps_text(value) if name in ("eps", "validation_eps") and isinstance(value, float) else str(value)


def latency_text(card: Card) -> str:
    rows = [
        (
            f"`{one.file}`",
            of.batch,
            f"{1e3 * of.p50:.3g} ms",
            f"{1e3 * of.p99:.3g} ms",
            of.runs,
            one.threads,
            one.device,
        )
        for one in card.programs
        for of in one.latency
    ]
    return "\n\n".join(["## Latency", table(("program", "batch", "p50", "p99", "runs", "threads", "device"), rows)])


def use_text(card: Card) -> str:
    return "\n\n".join(
        [
            "## Use",
            "With onnxruntime, NumPy and Pillow alone, in the folder of the package, unpacked if it is an archive: "
            "`python classify.py IMAGE.png` with these lines in `classify.py`.",
            f"```python\n{snippet(card, FOLDER)}```",
            "`robustq verify PACKAGE --digest HEX` compares the files with their hashes, and on your machine the "
            "golden images with their logits. The digest is what was printed when the package was made: whoever "
            "changes a file can change the card too.",
        ]
    )


def not_said_text(card: Card) -> str:
    return "\n\n".join(["## What the numbers do not say", "\n".join(f"- {line}" for line in card.not_said)])


def hashes_text(card: Card) -> str:
    rows = [(f"`{name}`", file.bytes, f"`{file.sha256}`") for name, file in card.files.items()]
    more = [f"{SEALED} `{seal_of(card.model_dump(mode='json'))}`."]
    more += [f"Data: {card.data.name}, {card.data.split} split, `{card.data.sha256}`."]
    if card.network.code is not None:
        more.append(f"Code, which is not in the package: {card.network.code.name}, `{card.network.code.sha256}`.")
    if card.network.weights is not None:
        more.append(f"Weights as they were given or trained: `{card.network.weights}`.")
    made = ", ".join(f"{name} {version}" for name, version in card.made_with.items())
    told = table(("file", "bytes", "SHA-256"), rows)
    return "\n\n".join(
        ["## Hashes", told, "\n\n".join(more), f"Made with {made}. `{ONNX}` is what was attacked again."]
    )
