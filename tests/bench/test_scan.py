"""Benchmarks: what is timed is checked first, in turns, and only while the machine is quiet."""

import json
import os
import statistics
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minivim.bench import measure
from minivim.bench import scan as bench
from minivim.bench.model import (
    TOLERANCES,
    ModelBench,
    ModelCase,
    bench_model,
    check_kernel,
    model_call,
    model_error,
)
from minivim.bench.report import draw_bars, draw_lines, plot, spread, summarise, table
from minivim.bench.scan import ScanBench, ScanCase, bench_scan
from minivim.extras import require
from minivim.models.backbone import Backbone
from minivim.models.deit import Attention
from minivim.ops import available_backends, selective_scan

SMALL = ScanCase(2, 3, 5, 4, "float32", "cpu")


# ---- a second implementation, in the layout (B, D, L), right and wrong -----------------------------------------------


def right(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend="chunked").transpose(1, 2)


def wrong_output(u, *rest, **options):
    return right(u, *rest, **options) * 1.001


def wrong_gradient(u, delta, A, *rest, **options):
    return right(u, delta, A.detach() + 0 * A, *rest, **options)


def not_a_number(u, *rest, **options):
    return right(u, *rest, **options) * float("nan")


def raises(**inputs):
    raise ZeroDivisionError("a foreign fault")


# ---- rounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """Make the load meter read these values in turn."""

    def install(*values):
        iterator = iter(values)
        monkeypatch.setattr(measure.LoadMeter, "foreign_cores", lambda self: next(iterator))

    return install


def recorder(log, name):
    def sample():
        log.append(name)
        return float(len(log))

    return sample


def test_contestants_take_turns(loads):
    loads(0.0, 0.0, 0.0)
    log = []
    rounds = measure.interleave([recorder(log, "a"), recorder(log, "b")], 3)
    assert log == ["a", "b"] * 3
    assert rounds.seconds == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    assert (rounds.discarded, rounds.noisy_kept) == (0, 0)


def test_a_round_on_a_busy_machine_is_repeated(loads):
    loads(0.0, 0.5, measure.IDLE_CORES, 2.0, 0.0)
    rounds = measure.interleave([recorder([], "a")], 3)
    assert rounds.seconds == [[1.0, 3.0, 5.0]]
    assert (rounds.discarded, rounds.noisy_kept) == (2, 0)


def test_if_the_machine_never_rests_the_quietest_rounds_are_kept_and_counted(loads):
    loads(0.9, 0.3, 0.8, 0.0, 0.4, 0.5, 0.7, 0.6)
    rounds = measure.interleave([recorder([], "a")], 2)
    assert rounds.seconds == [[4.0, 2.0]]
    assert (rounds.discarded, rounds.noisy_kept) == (6, 1)


def test_without_a_load_every_round_counts(loads, monkeypatch):
    loads(None, None)
    monkeypatch.setattr(measure, "busy_seconds", lambda: None)
    rounds = measure.interleave([recorder([], "a")], 2)
    assert rounds.seconds == [[1.0, 2.0]] and not rounds.gated


def test_the_load_is_what_others_used(monkeypatch):
    readings = iter([(10.0, 2.0, 100.0), (14.0, 3.0, 103.0), (10.0, 2.0, 100.0), (14.0, 8.0, 103.0)])
    monkeypatch.setattr(measure.LoadMeter, "read", staticmethod(lambda: next(readings)))
    assert measure.LoadMeter().foreign_cores() == (3.0 - 1.0) / 4.0
    assert measure.LoadMeter().foreign_cores() == 0.0  # clocks of different grain must not give a negative load


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="this system does not count all processes' work")
def test_busy_seconds_counts_our_own_work():
    before, own = measure.busy_seconds(), measure.time.process_time()
    while measure.time.process_time() - own < 0.2:
        pass
    assert measure.busy_seconds() - before > 0.1  # ticks of 10 ms a core


def test_the_sampler_divides_by_its_repeats_and_leaves_the_first_call_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 5.0 if not calls else 0.02  # the first call compiles
        calls.append(now[0])

    sample = measure.cpu_sampler(call)
    before = len(calls)
    assert sample() == pytest.approx(0.02)
    assert len(calls) - before == round(measure.SAMPLE_SECONDS / 0.02)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak")
def test_the_peak_is_what_was_held_at_once():
    MiB = 2**20
    # The system counts resident pages in batches, and may take back some of this process meanwhile: three tries.
    peaks = [measure.peak_extra_bytes(lambda: torch.ones(64 * MiB, dtype=torch.uint8), "cpu") for _ in range(3)]
    assert any(60 * MiB <= peak < 72 * MiB for peak in peaks), peaks
    one_after_the_other = measure.peak_extra_bytes(lambda: [torch.ones(64 * MiB, dtype=torch.uint8) is None] * 3, "cpu")
    assert one_after_the_other < 72 * MiB


def test_a_child_answers_with_our_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert measure.in_child(torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)


def test_a_child_that_dies_is_an_error():
    with pytest.raises(ChildProcessError, match="exit code 3"):
        measure.in_child(os._exit, 3)


# ---- the scan --------------------------------------------------------------------------------------------------------


def test_the_reference_results_are_those_of_the_whole_batch():
    inputs = {name: x.double() for name, x in SMALL.inputs().items()}
    whole = bench.outputs(bench.scan_function("reference", channel_first=False), inputs)
    parts = bench.reference_outputs(SMALL.inputs())
    assert parts.keys() == whole.keys() and len(parts) == 9
    for key, x in whole.items():
        torch.testing.assert_close(parts[key], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_backend_passes_the_check(dtype):
    case = ScanCase(2, 3, 5, 4, dtype, "cpu")
    for name in available_backends("cpu"):
        assert bench.error_against(bench.reference_outputs(case.inputs()), name, False, case) <= bench.TOLERANCES[dtype]


def test_both_directions_are_the_mean_of_two_scans():
    inputs = replace(SMALL, dtype="float64", directions=2).inputs()
    ahead = {name: x for name, x in inputs.items() if not name.endswith("_back")}
    back = {name.removesuffix("_back"): x for name, x in inputs.items() if name.endswith("_back")}
    options = {"delta_softplus": True, "backend": "reference"}
    expected = (selective_scan(**ahead, **options) + selective_scan(**back, z=inputs["z"], reverse=True, **options)) / 2
    for name in available_backends("cpu"):
        torch.testing.assert_close(bench.scan_function(name, channel_first=False)(**inputs), expected)
    against = bench.scan_function(f"{__name__}:right", channel_first=True)(**bench.transposed(inputs))
    torch.testing.assert_close(against.transpose(1, 2), expected)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "name, complaint",
    [
        ("wrong_output", "its output is off by 1.0e-03|its gradient of .* is off"),
        ("wrong_gradient", "its gradient of A is off by 1.0e[+]00"),
        ("not_a_number", "is off by nan"),
        ("raises", "fails at .*: ZeroDivisionError: a foreign fault"),
    ],
)
def test_a_wrong_implementation_is_refused_before_anything_is_timed(monkeypatch, name, complaint, directions):
    monkeypatch.setattr(measure, "interleave", lambda *_: pytest.fail("timed before it was checked"))
    sizes = {"shape": ("2,3,5",), "state": 4, "directions": directions}
    config = ScanBench(**sizes, backend=("reference",), against=f"{__name__}:{name}", memory=False)
    with pytest.raises(ValueError, match=f"{__name__}:{name} .*({complaint})"):
        bench_scan(config)


@pytest.fixture(scope="module")
def report():
    """A report of every backend and a second implementation at two lengths."""
    samples = measure.SAMPLE_SECONDS
    measure.SAMPLE_SECONDS = 0.001
    try:
        return bench_scan(
            ScanBench(
                shape=("2,3,5", "2,3,9"), state=4, directions=2, against=f"{__name__}:right", memory=False, rounds=2
            )
        )
    finally:
        measure.SAMPLE_SECONDS = samples


def test_the_scan_report_has_every_contestant_in_every_contest(report):
    names = [*available_backends("cpu"), f"{__name__}:right", bench.YARDSTICK]
    contests = [(length, mode) for length in (5, 9) for mode in ("forward", "forward + backward")]
    assert [(row.length, row.mode, row.name) for row in report.rows] == [(*c, name) for c in contests for name in names]
    assert all(row.seconds > 0 and row.items == 2 for row in report.rows)
    assert all((row.error is None) == (row.name == bench.YARDSTICK) for row in report.rows)


def test_ratios_are_to_the_first(report):
    for first in report.rows[:: len(report.rows) // 4]:
        assert first.ratio == 1.0
        for row in report.rows:
            if (row.case, row.mode) == (first.case, first.mode):
                assert row.ratio == pytest.approx(row.seconds / first.seconds)


def test_the_table_shows_every_row_and_how_it_was_measured(report):
    text = table(report)
    assert text.count("torch.exp on (B, E, L, N)") == 4 and "interleaved rounds" in text
    assert f"torch {measure.version('torch')}" in text and f"{torch.get_num_threads()} threads" in text
    blocks = [block.splitlines() for block in text.split("\n\n")[1:]]
    assert len(blocks) == 4
    assert all(len({len(line) for line in block[1:]}) == 1 for block in blocks)  # aligned columns


def test_the_files_hold_the_report(report, tmp_path):
    pytest.importorskip("matplotlib")
    as_json, picture = report.save(tmp_path / "new" / "scan")
    found = json.loads(as_json.read_text())
    assert [row["seconds"] for row in found["rows"]] == [row.seconds for row in report.rows]
    assert found["environment"]["versions"]["torch"] == measure.version("torch")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_labelled_axes_and_every_contestant(report):
    pytest.importorskip("matplotlib")
    axes = require("matplotlib.figure", "train").Figure().subplots(1, 2)
    forward = [row for row in report.rows if row.mode == "forward"]
    names = {row.name for row in forward}
    draw_lines(axes[0], forward)
    assert axes[0].get_xlabel() == "tokens L" and axes[0].get_ylabel() == "median time (ms)"
    assert {line.get_label().removesuffix(", batch 2") for line in axes[0].lines} == names
    draw_bars(axes[1], [row for row in forward if row.length == 5])
    assert axes[1].get_xlabel() == "median time (ms)" and len(axes[1].patches) == len(names)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak")
def test_the_memory_of_the_loop_grows_with_its_states():
    case = ScanCase(1, 64, 256, 16, "float32", "cpu")
    states = 4 * case.E * case.L * case.N
    assert bench.peak(bench.scan_memory, "cpu", "reference", False, "forward + backward", case) >= 2 * states


def test_medians_and_spread():
    rounds = measure.Rounds([[1.0, 2.0, 3.0, 4.0, 5.0], [4.0, 6.0, 5.0, 7.0, 8.0]], 0, 0, True)
    common = {"case": "c", "length": 1, "mode": "m", "extra_bytes": {"a": 1, "b": None}, "error": None}
    a, b = summarise(["a", "b"], rounds, **common)
    assert (a.seconds, b.seconds) == (3.0, 6.0) == (statistics.median(rounds.seconds[0]), b.ratio * 3.0)
    assert a.spread == pytest.approx((4 - 2) / 3) and spread([2.0]) == 0.0
    assert (a.extra_bytes, b.extra_bytes) == (1, None)


# ---- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_models_are_timed_in_every_variant(monkeypatch, train):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.001)
    names = ("vim_nano_patch2_8", "deit_tiny_patch4_32")
    before = torch.get_num_threads()
    report = bench_model(
        ModelBench(model=names, img_size=(8,), batch=3, train=train, rounds=1, memory=False, threads=1)
    )
    backends = [name for name in available_backends("cpu") if name != "reference"]
    expected = [f"{names[0]}, {name} scan" for name in backends]
    expected += [f"{names[1]}, {kind} attention" for kind in ("fused", "naive")]
    assert [row.name for row in report.rows] == expected
    assert {row.mode for row in report.rows} == {"training step" if train else "inference"}
    assert all(row.length == 17 and row.items == 3 and 0 <= row.error < 1e-4 for row in report.rows)
    assert report.rows[0].per_second == 3 / report.rows[0].seconds
    assert report.environment["threads"] == 1 and torch.get_num_threads() == before


def test_a_model_that_differs_is_refused(monkeypatch):
    build = ModelCase.build

    def disturbed(case) -> Backbone:
        model = build(case)
        if case.variant == "fused":
            model.head.bias.data += 0.1
        return model

    monkeypatch.setattr(ModelCase, "build", disturbed)
    with pytest.raises(ValueError, match="fused attention differs from .*naive attention: its logits is off by"):
        bench_model(ModelBench(model=("deit_tiny_patch4_32",), img_size=(8,), rounds=1, memory=False))


def test_what_finds_no_memory_is_named_and_the_others_are_timed(monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.001)
    attention = Attention.forward

    def hungry(self, x):
        if not self.fused and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attention(self, x)

    monkeypatch.setattr(Attention, "forward", hungry)
    config = ModelBench(model=("deit_tiny_patch4_32",), img_size=(8,), batch=3, rounds=1, memory=False, threads=1)
    report = bench_model(config)
    assert [row.name for row in report.rows] == ["deit_tiny_patch4_32, fused attention"]
    assert report.too_large == ["deit_tiny_patch4_32, naive attention at 8 pixels"]
    assert table(report).endswith("\n\nout of memory: deit_tiny_patch4_32, naive attention at 8 pixels")
    with pytest.raises(ValueError, match="^batch is 3; it must be smaller, or img_size: nothing fits into memory"):
        bench_model(replace(config, attention=("naive",)))
    monkeypatch.setattr(Attention, "forward", lambda self, x: x / torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        bench_model(config)


def test_a_named_kernel_is_the_one_that_runs(monkeypatch):
    def kernels(variant):
        case = ModelCase("deit_tiny_patch4_32", variant, 8, 2, False, "cpu")
        with torch.profiler.profile() as profile:
            model_call(case)()
        return {event.key for event in profile.key_averages()}

    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert flash in kernels("flash") and flash not in kernels("naive")
    seen = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: seen.append(torch.backends.cuda.math_sdp_enabled()) or v
    )
    for variant in ("fused", "flash"):
        model_call(ModelCase("deit_tiny_patch4_32", variant, 8, 2, False, "cpu"))()
    assert set(seen[:12]) == {True} and set(seen[12:]) == {False}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention": ("cudnn",)}, "^attention is 'cudnn'; it must be another one on cpu"),
        ({"attention": ("fast",)}, "^attention is 'fast'; it must be one of 'fused', 'naive', 'flash', 'cudnn'"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelBench(model=("deit_tiny_patch4_32",), **changes).check()
    for name in ("flash", "cudnn"):
        check_kernel(name, "cuda", "bfloat16")
        with pytest.raises(ValueError, match=f"^dtype is 'float32'; it must be 'bfloat16' for the kernel '{name}'"):
            check_kernel(name, "cuda", "float32")


def test_models_of_several_sizes_are_drawn_beside_the_papers_points(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.001)
    names = ("vim_nano_patch2_8", "deit_tiny_patch4_32")
    config = ModelBench(model=names, backend=("chunked",), attention=("fused",), img_size=(8, 16), rounds=1, threads=1)
    report = bench_model(config)
    assert [row.side for row in report.rows] == [8, 8, 16, 16]
    drawn = []
    monkeypatch.setattr("minivim.bench.report.finish", lambda figure, *rest: drawn.append(figure))
    plot(report, tmp_path / "models.png")
    speed, memory = drawn[0].axes
    lines = {line.get_label(): line for line in speed.lines}
    row = next(row for row in report.rows if row.side == 16)
    assert lines[row.name].get_xydata()[1].tolist() == [16, row.per_second]
    assert lines["Vim-Ti, paper (A100, batch not stated)"].get_xydata()[-1].tolist() == [1248, 51]
    weighed = [line.get_xydata() for line in memory.lines]
    assert len(weighed) == 4 and [len(points) for points in weighed] == [2, 2, 5, 4]
    assert weighed[0][1].tolist() == [16, row.extra_bytes / 2**30]


@pytest.mark.parametrize("train", [False, True])
def test_mixed_precision_is_used_and_is_not_exact(train):
    case = ModelCase("vim_nano_patch2_8", "chunked", 8, 2, train, "cpu", dtype="bfloat16")
    assert 1e-4 < model_error(case) < TOLERANCES["bfloat16"]
    assert model_error(replace(case, dtype="float32")) < 1e-5
    assert case.reference().dtype == "float32"


def test_a_training_step_changes_the_weights_and_inference_does_not():
    for train in (True, False):
        case = ModelCase("vim_nano_patch2_8", "chunked", 8, 2, train, "cpu")
        model = case.build()
        before = [p.clone() for p in model.parameters()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelCase, "build", lambda self, model=model: model)
            model_call(case)()
        changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert all(changed) if train else not any(changed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch", [1, 8])
def test_on_cuda(batch):
    report = bench_scan(ScanBench(shape=(f"{batch},64,65",), device="cuda", directions=batch % 7 + 1, rounds=2))
    assert all(row.seconds > 0 for row in report.rows)
    assert all(row.extra_bytes > 0 for row in report.rows if row.name != bench.YARDSTICK)
