"""Pictures of the course: what moves, and the palette of what does not."""

from minivim.figures.moving import Flipbook, flipbook, with_palette

__all__ = ["Flipbook", "flipbook", "with_palette"]
