"""Answers on the command line."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tunesmith.errors import OptionNotRead
from tunesmith.interfaces.cli.shared import Json, open_service, show_json


def complete(
    model: Annotated[str, typer.Argument(help="A tuned or base model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts; without any, one per line from standard input."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that hold this share; 0: all.")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 4096,
    encoding: Annotated[
        str, typer.Option(help="Of standard input; default: by its byte-order mark, else UTF-8.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Answer each prompt, one line each; on a terminal a single answer appears as it is written. An
    empty line is answered by one."""
    if prompts and encoding:
        raise OptionNotRead(
            name="encoding",
            value=encoding,
            readers="standard input",
            here="the prompts are arguments",
        )
    asked = prompts or _lines_of_input(encoding)
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    if len(asked) == 1 and sys.stdout.isatty() and not as_json:
        for piece in open_service().stream(model, asked[0], **options):
            print(piece, end="", flush=True)
        print()
        return
    from tunesmith.data.text import is_empty

    answers = iter(open_service().complete(model, [p for p in asked if not is_empty(p)], **options))
    nothing: dict[str, Any] = {
        "text": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "stopped": True,
        "ids": (),
    }
    found = [nothing if is_empty(p) else asdict(next(answers)) for p in asked]
    if as_json:
        show_json([{"prompt": p, **c} for p, c in zip(asked, found, strict=True)])
        return
    for c in found:
        print(c["text"].replace("\r", "\\r").replace("\n", "\\n") if len(asked) > 1 else c["text"])


def classify(
    model: Annotated[str, typer.Argument(help="A model that was tuned to give labels.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; without any, one per line from standard input."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Where a text may have several labels: how likely each must be."),
    ] = None,
    encoding: Annotated[
        str, typer.Option(help="Of standard input; default: by its byte-order mark, else UTF-8.")
    ] = "",
    as_json: Json = False,
) -> None:
    """The label of each text, one a line, with how likely it is. An empty line is answered by
    one."""
    from tunesmith.data.text import is_empty

    asked = texts or _lines_of_input(encoding)
    given = [t for t in asked if not is_empty(t)]
    found = iter(open_service().classify(model, given, threshold=threshold))
    answers = [None if is_empty(t) else next(found) for t in asked]
    if as_json:
        told = zip(asked, answers, strict=True)
        show_json([{"text": t, **(a.to_json() if a else {"label": None})} for t, a in told])
        return
    for a in answers:
        shown = ", ".join(f"{n} {a.probabilities[n]:.3f}" for n in a.labels) if a else ""
        print(shown or ("" if a is None else "-"))


def _lines_of_input(encoding: str) -> list[str]:
    from tunesmith.data.files import decoded

    if sys.stdin is None:  # closed by who called
        return []
    lines = decoded(sys.stdin.buffer.read(), encoding).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
