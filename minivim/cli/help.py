"""What `--help` prints, 80 columns wide: what a command does, its flags with their defaults, examples.

The texts stand in the source beside what they describe, and are read from there: `python -OO` drops docstrings.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import get_args

WIDTH, COLUMN = 80, 24
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Command:
    """A command: `target` fetches what its flags build, which `run` is then given; None: it has no flags.

    headings: the first flag of each group and the group's title. defaults: the default of a flag in words, where the
    signature does not say it.
    """

    summary: str
    run: Callable
    examples: tuple[str, ...] = ()
    target: Callable[[], Callable] | None = None
    headings: Mapping[str, str] = field(default_factory=dict)
    defaults: Callable[[str], str] | None = None


def overview(name: str, commands: Mapping[str, Command]) -> str:
    """What there is below `name`: each command in one line."""
    width = max(map(len, commands))
    indent = " " * (width + 4)
    lines = [
        textwrap.fill(f"{each:<{width}}  {command.summary}", WIDTH, initial_indent="  ", subsequent_indent=indent)
        for each, command in commands.items()
    ]
    version = " minivim --version names the version." if name == "minivim" else ""
    rest = f"{name} COMMAND --help lists a command's flags.{version}"
    return "\n".join([f"usage: {name} COMMAND ...", "", *lines, "", rest])


def help_text(name: str, command: Command) -> str:
    """What one command does, and how it is called."""
    target = command.target() if command.target else lambda: None
    parameters = inspect.signature(target).parameters.values()
    texts = documented(target)
    places = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    flags = [parameter for parameter in parameters if parameter not in places]
    required = [f"--{each.name} {metavar(each.annotation)}" for each in flags if each.default is each.empty]
    usage = " ".join(["usage: minivim", name, *map(place_name, places), *required, *(["[flags]"] if flags else [])])
    lines = [usage, "", *textwrap.wrap(f"{command.summary}.", WIDTH), ""]
    lines += [entry(place_name(each), texts.get(each.name, "")) for each in places] + [""] * bool(places)
    for index, each in enumerate(flags):
        heading = command.headings.get(each.name, "" if index else "flags")
        lines += [*([""] if index else []), f"{heading}:"] if heading else []
        default = command.defaults(each.name) if command.defaults else default_text(each.default)
        lines.append(entry(spelling(each), described(texts.get(each.name, ""), default)))
    lines += [""] * bool(flags) + ["examples:" if command.examples else ""]
    return "\n".join([*lines, *(f"  {example}" for example in command.examples)]).rstrip()


def documented(target: Callable) -> dict[str, str]:
    """The text of each flag: the string below a dataclass's field, or the line below a function's Args."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(target))).body[0]
    if isinstance(tree, ast.ClassDef):
        texts = {}
        for each, after in pairwise(tree.body):
            if isinstance(each, ast.AnnAssign) and isinstance(after, ast.Expr):
                texts[ast.unparse(each.target)] = str(ast.literal_eval(after.value))
        return texts
    docstring = ast.get_docstring(tree) if isinstance(tree, ast.FunctionDef) else None
    return dict(re.findall(r"^ +(\w+): (.*)$", docstring or "", re.MULTILINE))


def described(text: str, default: str) -> str:
    """A flag's text and its default; that None means a default is Python's way to say it."""
    text = re.sub(r"\bNone: ", "default: ", text)
    if not default or "default: " in text and not default.startswith("default"):
        return f"{text.rstrip('.')} ({default})." if default else text
    return f"{text} ({default})"


def default_text(value: object) -> str:
    """A default as one would write it; nothing where there is none."""
    if value in (None, (), inspect.Parameter.empty):
        return ""
    return f"default: {written(value)}"


def written(value: object) -> str:
    """A value as a reader expects it: on, off, 0.001."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind_of(annotation: object) -> object:
    """The type of one value: int for int | None and for tuple[int, ...]."""
    kinds = [kind for kind in get_args(annotation) if kind not in (type(None), ...)]
    return kinds[0] if kinds else annotation


def metavar(annotation: object) -> str:
    """What stands for a value of this type."""
    return METAVARS.get(kind_of(annotation), "VALUE")  # type: ignore[call-overload]  # any type may be looked up


def place_name(parameter: inspect.Parameter) -> str:
    """An argument without a flag: CHECKPOINT, IMAGES... if there may be several, [MODELS...] also if none."""
    name = parameter.name.upper() + ("..." if get_args(parameter.annotation) else "")
    return name if parameter.default is parameter.empty else f"[{name}]"


def spelling(parameter: inspect.Parameter) -> str:
    """How a flag is given: --lr NUMBER; a switch as --resume, --no-resume."""
    name = parameter.name.replace("_", "-")
    if kind_of(parameter.annotation) is bool:
        return f"--{name}, --no-{name}"
    return f"--{name} {metavar(parameter.annotation)}"


def entry(left: str, text: str) -> str:
    """One flag: its spelling to the left, its text to the right, below it where the spelling is long."""
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False) or [""]
    if len(left) + 4 > COLUMN:
        return "\n".join([f"  {left}", *(" " * COLUMN + line for line in lines)])
    return "\n".join([f"  {left:<{COLUMN - 2}}{lines[0]}", *(" " * COLUMN + line for line in lines[1:])])
