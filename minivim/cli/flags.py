"""From the words of a command line to the dataclass or function that they describe; a wrong word is one sentence."""

import contextlib
import inspect
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import get_origin

from minivim.checks import shown
from minivim.extras import require


def parse(target: Callable, arguments: Sequence[str], command: str):
    """Build `target`, a dataclass or a function, from flags; a wrong flag is a ValueError in one sentence."""
    tyro = require("tyro", "train")
    check_texts(arguments)
    check_repeats(target, arguments)
    check_switches(target, arguments)
    complaint = io.StringIO()
    config = (tyro.conf.UseAppendAction,)  # a sequence is a flag given several times
    words = spell_out_switches(target, arguments)
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(target, args=words, prog=f"minivim {command}", config=config, add_help=False)
    except SystemExit:
        raise ValueError(one_sentence(complaint.getvalue())) from None


def one_sentence(box: str) -> str:
    """tyro's framed complaint as one line: what was wrong, and how the flag is written."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+|-{3,}", " ", box.partition("\n")[2])  # colours, frame, title
    text = " ".join(plain.split())
    text = re.sub(r" ?For full helptext.*", "", text).replace("{None}|", "")
    text = re.sub(r"Argument helptext: (\S+ \S+).*", r"(it must be given as \1)", text)
    text = re.sub(r" Got errors:.*?(?=\(it must|$)", " ", text)
    return re.sub(r"^Error parsing (?=-)|^Error parsing \S+: ", "", text)


def check_texts(arguments: Sequence[str]) -> None:
    """Refuse what no flag can mean: nothing at all, a null character, half a character."""
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=")
        if not (argument.startswith("--") and equals):
            flag, value = before if before.startswith("-") else "an argument", argument
        if value == "":
            raise ValueError(f"{shown_flag(flag)} is ''; it must not be empty")
        if "\0" in value:
            raise ValueError(f"{shown_flag(flag)} is {shown(value)}; it must be without a null character")
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            raise ValueError(f"{shown_flag(flag)} is {shown(value)}; it must be valid Unicode") from None


def shown_flag(flag: str) -> str:
    """A flag as it is, or cut where it is nobody's."""
    return flag if re.fullmatch(r"[\w -]{1,40}", flag) else shown(flag)


def flag_name(argument: str) -> str:
    """The flag that an argument names, written as help writes it and without its value: --a_b=c is --a-b."""
    return argument.partition("=")[0].replace("_", "-")


def check_repeats(target: Callable, arguments: Sequence[str]) -> None:
    """Refuse a flag given twice, where the last one would win in silence; those of sequences may be repeated."""
    counts = Counter(re.sub("^--no-", "--", flag_name(argument)) for argument in arguments)
    for name, parameter in inspect.signature(target).parameters.items():
        flag = f"--{name.replace('_', '-')}"
        if counts[flag] > 1 and get_origin(parameter.annotation) is not tuple:
            raise ValueError(f"{flag} is given {counts[flag]} times; it must be given once")


def check_switches(target: Callable, arguments: Sequence[str]) -> None:
    """Refuse a value that is joined to a switch, unless the switch is an optional one and the value its Python name."""
    allowed = {bool: (), bool | None: ("True", "False", "None")}
    for name, parameter in inspect.signature(target).parameters.items():
        flag = f"--{name.replace('_', '-')}"
        given = [
            argument.partition("=")[2] for argument in arguments if "=" in argument and flag_name(argument) == flag
        ]
        if parameter.annotation in allowed and not set(given) <= set(allowed[parameter.annotation]):
            off = flag.replace("--", "--no-", 1)
            raise ValueError(f"{flag} is {shown(given[0])}; it must be given as {flag} or {off}")


def spell_out_switches(target: Callable, arguments: Sequence[str]) -> list[str]:
    """`--resume` and `--no-resume` as the `--resume True` and `--resume False` that an optional boolean wants."""
    parameters = inspect.signature(target).parameters
    switches = {f"--{name.replace('_', '-')}" for name, each in parameters.items() if each.annotation == (bool | None)}
    spelled = []
    for argument, following in pairwise([*arguments, ""]):
        plain = argument.replace("_", "-")
        positive = plain.replace("--no-", "--", 1)
        if positive not in switches:
            spelled.append(argument)
        elif plain != positive:
            spelled += [positive, "False"]
        else:
            spelled += [plain] if following in ("True", "False", "None") else [plain, "True"]
    return spelled
