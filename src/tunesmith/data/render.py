"""Chat templates. Our own are rendered here, any other in a child with little time and memory:
Jinja's sandbox stops code, not cost.

As a program: reads one JSON object from standard input, writes one to standard output.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib.resources import files

from tunesmith.errors import InvalidPrompt, TemplateTooCostly

LONGEST_SOURCE = 64 << 10  # characters; the longest of well-known bases has under 20,000
LONGEST_OUTPUT = 1 << 20  # bytes
CPU_SECONDS, MEMORY = 2, 512 << 20  # of the child, Python's own start included
WALL_SECONDS = 20.0


@dataclass(frozen=True)
class Rendering:
    source: str
    messages: Sequence[Mapping[str, str]]
    add_generation_prompt: bool
    bos: str
    eos: str
    today: str
    """As YYYY-MM-DD: what strftime_now tells."""

    def text(self) -> str:
        """In a limited child, unless the template is our own. InvalidPrompt where it says no,
        TemplateTooCostly where it is stopped."""
        return _render(self) if self.source in _own() else _render_limited(self)

    def refused(self, reason: str) -> InvalidPrompt:
        roles = ", ".join(m["role"] for m in self.messages)
        return InvalidPrompt(reason=f"the base's chat template refuses the roles {roles}: {reason}")


@cache
def _own() -> frozenset[str]:
    folders = [f for f in files("tunesmith.bases").iterdir() if f.is_dir()]
    return frozenset(
        f.joinpath("chat_template.jinja").read_text("utf-8")
        for f in folders
        if f.joinpath("chat_template.jinja").is_file()
    )


def _render(asked: Rendering) -> str:
    import jinja2  # late: most commands render nothing
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(
        raise_exception=_raise, strftime_now=date.fromisoformat(asked.today).strftime
    )
    environment.filters["tojson"] = lambda v, **k: json.dumps(v, ensure_ascii=False, **k)
    try:
        return environment.from_string(asked.source).render(
            messages=asked.messages,
            add_generation_prompt=asked.add_generation_prompt,
            bos_token=asked.bos,
            eos_token=asked.eos,
        )
    except jinja2.TemplateError as e:
        raise asked.refused(str(e)) from None


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _render_limited(asked: Rendering) -> str:
    if len(asked.source) > LONGEST_SOURCE:
        raise TemplateTooCostly(
            reason=f"it has {len(asked.source):,} characters, {LONGEST_SOURCE:,} at most",
            template=asked.source,
        )
    # -P: a file in the current folder that is named like a library is not imported
    command = [sys.executable, "-P", "-m", "tunesmith.data.render"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(asdict(asked)).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
        )
        answer = (
            json.loads(ended.stdout)
            if ended.returncode == 0
            else {"costly": f"it ended by {_how(ended.returncode)}"}
        )
    except subprocess.TimeoutExpired:
        answer = {"costly": f"it took over {WALL_SECONDS:.0f} s"}
    if "costly" in answer:
        raise TemplateTooCostly(reason=answer["costly"], template=asked.source)
    if "refused" in answer:
        raise asked.refused(answer["refused"])
    return str(answer["text"])


def _how(code: int) -> str:
    return (
        f"signal {-code}, after {CPU_SECONDS} s of processor time at most"
        if code < 0
        else f"exit code {code}"
    )


def main() -> None:
    for limit, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    asked = Rendering(**json.load(sys.stdin))
    try:
        text = _render(asked)
        size = len(text.encode())  # half a character of a pair is refused here
        too_long = f"it wrote {size:,} bytes, {LONGEST_OUTPUT:,} at most"
        answer = {"text": text} if size <= LONGEST_OUTPUT else {"costly": too_long}
    except InvalidPrompt as e:
        answer = {"refused": e.fields["reason"].partition(": ")[2]}
    except (MemoryError, RecursionError, OverflowError) as e:
        answer = {"costly": f"it ended with {type(e).__name__}"}
    except Exception as e:  # whatever else a template brings about
        answer = {"refused": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
