"""What the notebooks need beside the package: exercises that are checked, and a grader for a class."""

from minivim.course.exercises import check

__all__ = ["check"]
