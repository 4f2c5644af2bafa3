"""Commands that print results."""

from typing import Any

import click

from robustlib.number_text import counted
from robustq.jobs.commands.base import (
    CSV,
    Choice,
    Seconds,
    form_of,
    json_option,
    open_store,
    refuse_typed,
    spreadsheet_option,
)
from robustq.jobs.commands.options import question_options
from robustq.jobs.text.notes import note
from robustq.jobs.text.safe_text import say
from robustq.jobs.text.tables import FORMATS


@click.command()
@question_options
@click.option("--summary", is_flag=True, help="One line a model instead of one a result.")
@click.option("--explanations", is_flag=True, help="What became of explanations, instead of accuracies.")
@click.option("--format", "form", type=Choice(FORMATS), default="table", show_default=True, help="How to print.")
@spreadsheet_option
@json_option
@click.pass_context
def results(
    ctx: click.Context,
    question: Any,
    summary: bool,
    explanations: bool,
    form: str,
    spreadsheet: bool,
    as_json: bool,
) -> None:
    """Print the results: accuracies with their 95 % intervals, in percent; as fractions with --json and in CSV.

    \b
    robustq results --sweep mine --attack autoattack --eps 8/255
    robustq results --over-seeds --sort=-robust_accuracy
    robustq results --group model,attack,eps --format latex
    robustq results --pivot --model 'b-*'
    robustq results --over-seeds --pivot --format latex
    robustq results --best robust_accuracy --where 'n>=1000'
    robustq results --compare plain robust --attack pgd
    robustq results --explanations --where method=grad-cam --format markdown
    robustq results --explanations --compare plain robust
    robustq results --explanations --compare noise explanation-attack
    """
    from robustq.jobs.commands import explanations_text, results_text

    store = open_store(ctx)
    form, tell = form_of(ctx, form, as_json, spreadsheet), note
    if explanations:
        refuse_typed(ctx, "with --explanations", "summary")
        say(explanations_text.answer_text(store, question, form), data=form in CSV)
        return
    if form == "table" and question.plain and not summary:
        text = results_text.both_texts(store, question, tell)
    else:
        text = results_text.question_text(store, question, form, summary=summary, tell=tell)
    say(text, data=form in CSV)
    whole = form == "table" and not question.filters.groups  # a question about some rows is no question about a sweep
    if whole and (closing := results_text.closing_lines(store, question.filters.sweep)):
        say(f"\n{closing}")


@click.command()
@click.argument("statement")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Most rows to print.")
@click.option("--seconds", type=Seconds(), default=10.0, show_default=True, help="Most time to take.")
@json_option
@click.pass_context
def sql(ctx: click.Context, statement: str, limit: int, seconds: float, as_json: bool) -> None:
    """Ask the store with one SELECT of your own, which can change nothing.

    \b
    robustq sql "SELECT model, attack, eps, robust_accuracy FROM v_results ORDER BY robust_accuracy"
    """
    from robustq.jobs.store.read_only_sql import answer_text, ask

    answer = ask(ctx.obj, statement, limit=limit, seconds=seconds)
    say(answer_text(answer, as_json=as_json))
    if not answer.whole:
        note(f"the first {counted(limit, 'row')}; --limit prints more")


COMMANDS = (results, sql)
