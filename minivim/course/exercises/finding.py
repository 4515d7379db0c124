"""An exercise by its number: the chapter's checkers are imported when one of them is asked for."""

import importlib
import re
from importlib.util import find_spec

from minivim.course.exercises.checking import EXERCISES, Exercise, Wrong


def exercises_of(chapter: str) -> list[Exercise]:
    """The exercises of a chapter ("01"), in order; none if there is no such chapter."""
    module = f"minivim.course.exercises.chapter{chapter}"
    if re.fullmatch(r"\d\d", chapter) and find_spec(module):
        importlib.import_module(module)
    found = [each for number, each in EXERCISES.items() if number.startswith(f"{chapter}.")]
    return sorted(found, key=lambda each: int(each.number.partition(".")[2]))


def find_exercise(number: str) -> Exercise:
    """The exercise of that number. Wrong if there is none."""
    known = exercises_of(str(number).partition(".")[0])
    for each in known:
        if each.number == number:
            return each
    there = f"this chapter has {', '.join(each.number for each in known)}" if known else "no such chapter has exercises"
    raise Wrong(f"there is no exercise {number!r}; {there}")
