"""Pictures of the course: the one style, alt texts, block diagrams, and pictures that move."""

from minivim.figures.diagram import arrow, box, canvas
from minivim.figures.moving import Flipbook, flipbook
from minivim.figures.style import COLOURS, Picture, show, use_style, with_palette

__all__ = ["COLOURS", "Flipbook", "Picture", "arrow", "box", "canvas", "flipbook", "show", "use_style", "with_palette"]
