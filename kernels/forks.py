"""Whether this process was forked from another: then it has none of its parent's threads, and works alone.

Loaded with minivim, not at first use, since a process may be forked before it has run any kernel.
"""

import os

forked = False


def in_child() -> None:
    """What a forked child runs first."""
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)
