"""Speed and memory, measured: the scan's backends and whole models; and `doctor`, what this machine can run."""

from minivim.bench.model import ModelBench, bench_model
from minivim.bench.scan import ScanBench, bench_scan

__all__ = ["ModelBench", "ScanBench", "bench_model", "bench_scan"]
