"""Runs a checker on an answer: whatever the answer does becomes a sentence."""

from dataclasses import dataclass

from minivim.checks import printable
from minivim.course.exercises.checking import Todo, Wrong
from minivim.course.exercises.finding import find_exercise
from minivim.course.exercises.guarding import Abandoned, Guarded, own_numbers, shorten

MOST_SAID = 2000  # characters of a message


@dataclass(frozen=True)
class Verdict:
    """What `check` found: status "ok", "fix" or "todo"; the message says what differs; `printed` by the answer."""

    number: str
    title: str
    status: str
    message: str = ""
    printed: str = ""

    def __str__(self) -> str:
        name = f"[{self.status}] {self.number} {self.title}".rstrip()
        text = f"{name}: {self.message}" if self.message else name
        printed = f"your function printed:\n{self.printed}" if self.printed else ""
        return "\n".join(part for part in (text.replace("\n", "\n      "), printed) if part)


def judge(number: str, answer: object) -> Verdict:
    """Run the checker of exercise `number` on `answer`. Raises nothing but KeyboardInterrupt and Abandoned."""
    guarded, found, title, status, message = Guarded(answer), None, "", "ok", ""
    try:
        found = find_exercise(number)
        title = found.title
        with own_numbers():
            found.checker(guarded)
        if not guarded.calls:
            raise Wrong("the checker never called your function")
    except Todo:
        status = "todo"
    except Wrong as wrong:
        status, message = "fix", str(wrong)
    except (KeyboardInterrupt, Abandoned):
        raise
    except BaseException as error:  # the checker stumbled over what the answer gave it
        reason = f"{type(error).__name__}: {shorten(error)}"
        what = (
            "the exercise cannot be loaded"
            if found is None
            else "the checker cannot work with what your function returned"
        )
        status, message = "fix", f"{what} ({reason})"
    texts = message[:MOST_SAID], guarded.sink.text.rstrip()
    return Verdict(printable(str(number)), title, status, *(printable(text, kept="\n\t") for text in texts))
