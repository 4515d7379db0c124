"""Speed and memory, measured: the scan's backends, whole models, images; and `doctor`, what this machine can run."""

from minivim.bench.data import DataBench, bench_data
from minivim.bench.model import ModelBench, bench_model
from minivim.bench.scan import ScanBench, bench_scan

__all__ = ["DataBench", "ModelBench", "ScanBench", "bench_data", "bench_model", "bench_scan"]
