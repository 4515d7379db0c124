"""Weights on disk: our own files, and official ones with the names and options of the official Vim code."""

from minivim.models.checkpoints.either import load_any, load_weights
from minivim.models.checkpoints.official import load_official, official_name, to_official
from minivim.models.checkpoints.own import (
    CLASSES,
    METADATA_KEY,
    header_of,
    load,
    load_extra,
    load_with_extra,
    read_file,
    rebuild,
    save,
)
from minivim.models.checkpoints.shipped import shipped

__all__ = [
    "CLASSES",
    "METADATA_KEY",
    "header_of",
    "load",
    "load_any",
    "load_extra",
    "load_official",
    "load_weights",
    "load_with_extra",
    "official_name",
    "read_file",
    "rebuild",
    "save",
    "shipped",
    "to_official",
]
