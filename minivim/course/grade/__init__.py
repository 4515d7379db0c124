"""The grader: each submission in a process of its own, the verdicts computed outside it."""

from minivim.course.grade.report import grade_files, table

__all__ = ["grade_files", "table"]
