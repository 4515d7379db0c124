"""Images with labels: where they come from, how they are decoded, drawn and augmented."""

from minivim.data.hub import hub_reachable
from minivim.data.sources import ImageData, channel_statistics, load_data

__all__ = ["ImageData", "channel_statistics", "hub_reachable", "load_data"]
