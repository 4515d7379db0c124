"""`minivim flops` against the papers, against torch.utils.flop_counter, and against a scan that counts as it goes."""

import cmath
import math
import re
from collections import Counter
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minivim import cli
from minivim.bench import flops
from minivim.bench.flops import NAMES, TABLE_1, build, counting_backend, fft_products
from minivim.models.s4vit import S4Mixer
from minivim.ops.implementations import Backend, one_after_the_other, one_and_the_other
from minivim.ops.reference import add_norm_reference, conv_reference, scan_reference

measure = cache(flops.measure)
README = Path(__file__).resolve().parents[2] / "README.md"
PUBLISHED = {  # millions of parameters, Vim's Table 1; billions of "FLOPs" where a paper has them
    "vim_tiny_patch16_224": (7, 1.5),  # MambaOut (2405.07992), Table 1
    "vim_small_patch16_224": (26, 5.3),  # VMamba (2401.10166), Table 1
    "vim_base_patch16_224": (98, None),
    "deit_tiny_patch16_224": (6, 1.3),
    "deit_small_patch16_224": (22, 4.6),
    "deit_base_patch16_224": (87, 17.6),  # Table 1 cuts them to 86, MambaOut to 17.5
    "resnet50": (26, 4.1),  # Table 1 cuts 25.6 to 25
    "s4nd_vit_base_patch16_224": (89, None),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_parameters_and_multiply_adds_are_those_of_the_papers(name):
    found, (parameters, products) = measure(name), PUBLISHED[name]
    assert round(found.parameters / 1e6) == parameters
    assert products is None or round(found.parts.total() / 1e9, 1) == products


def test_resnet_has_the_published_count_of_form_1_5():
    assert measure("resnet50").matrix_flops == 2 * 4_089_184_256


def no_scan(u, *rest):
    return torch.empty_like(u), None


WITHOUT_SCAN = Backend(
    "without the scan", no_scan, partial(one_after_the_other, no_scan),
    conv_reference, partial(one_and_the_other, conv_reference), add_norm_reference,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_matrix_products_are_those_that_torch_counts(name):
    """The scan itself and the kernels of S4 are left out: a backend may have matrix products of its own in them."""
    model, image = build(name)
    for layer in model.modules():
        if hasattr(layer, "backend"):
            layer.backend = WITHOUT_SCAN
        if isinstance(layer, S4Mixer):
            layer.kernels = lambda L, C=layer.C: C.new_empty(2, 2, C.shape[2], L)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *image, device="meta"))
    assert measure(name).matrix_flops == counter.get_total_flops()


def test_the_scan_costs_what_its_recurrence_multiplies():
    B, L, E, N = 1, 5, 3, 4
    u, delta, z = (torch.rand(B, L, E) for _ in range(3))
    A, b, c, D = -torch.rand(E, N), torch.rand(B, L, N), torch.rand(B, L, N), torch.rand(E)
    done = 0

    def times(x: float, y: float) -> float:
        nonlocal done
        done += 1
        return x * y

    y = torch.zeros(B, L, E)
    for channel in range(E):
        h = [0.0] * N
        for t in range(L):
            step, value, gate = (x[0, t, channel].item() for x in (delta, u, z))
            drive = times(step, value)
            y[0, t, channel] = times(D[channel].item(), value)
            for n in range(N):
                decay = math.exp(times(step, A[channel, n].item()))
                h[n] = times(decay, h[n]) + times(drive, b[0, t, n].item())
                y[0, t, channel] += times(c[0, t, n].item(), h[n])
            y[0, t, channel] = times(y[0, t, channel].item(), gate / (1 + math.exp(-gate)))
    torch.testing.assert_close(y, scan_reference(u, delta, A, b, c, D, z)[0])
    found: Counter = Counter()
    counting_backend(found).scan(u, delta, A, b, c, D, z, None, False, None, False)
    assert found == {"scan": done} and done == L * E * (4 * N + 3)


def test_an_fft_of_n_real_numbers_costs_half_of_what_a_complex_one_multiplies():
    done = 0

    def fft(x: list[complex]) -> list[complex]:
        nonlocal done
        if len(x) == 1:
            return x
        done += 4 * (len(x) // 2)  # real multiplications
        turns = (cmath.exp(-2j * math.pi * k / len(x)) for k in range(len(x) // 2))
        pairs = [(a, turn * b) for a, turn, b in zip(fft(x[::2]), turns, fft(x[1::2]), strict=True)]
        return [a + b for a, b in pairs] + [a - b for a, b in pairs]

    x = torch.randn(16, dtype=torch.complex128)
    torch.testing.assert_close(torch.tensor(fft(x.tolist()), dtype=x.dtype), torch.fft.fft(x))
    D, L, channels = 3, 8, 2
    spectra, skip_and_gate = channels * 4 * (L + 1), (channels + 1) * L
    found = fft_products(S4Mixer(D, N=2, channels=channels), torch.empty(1, L, D))
    assert found == D * ((1 + channels) * done // 2 + spectra + skip_and_gate)


def test_a_norm_squares_and_scales_twice():
    assert measure("deit_tiny_patch16_224").parts["norms"] == 25 * 3 * 197 * 192
    assert measure("vim_tiny_patch16_224").parts["norms"] == 25 * 3 * 197 * 192


def test_vim_is_linear_in_the_tokens_and_attention_is_quadratic():
    small, large = (measure("vim_tiny_patch16_224", size).parts for size in (None, 448))
    for part in ("scan", "projections", "convolutions", "norms"):
        assert large[part] * 197 == small[part] * 785
    small, large = (measure("deit_tiny_patch16_224", size).parts for size in (None, 448))
    assert large["attention"] * 197**2 == small["attention"] * 785**2
    assert small["attention"] == 12 * 2 * 197**2 * 192  # Vim, Eq. 5


def test_the_readme_shows_what_the_command_prints(capsys):
    assert cli.main(["flops"]) == 0
    text = README.read_text()
    assert f"```text\n{capsys.readouterr().out}```\n" in text
    vim, deit = (measure(f"{name}_tiny_patch16_224", 1248).parts.total() / 1e9 for name in ("vim", "deit"))
    assert f"at 1248 x 1248 Vim-Ti takes {vim:.1f} G multiply-adds, DeiT-Ti {deit:.1f}." in text
    assert f"with {measure('deit_base_patch16_224', 384).parameters:,} parameters" in text
    tiny = measure("vim_tiny_patch16_224").parts
    other = tiny.total() - tiny["scan"] * (1 - 9 * 16 / (4 * 16 + 3))
    assert f"would make {other / 1e9:.2f} of its {tiny.total() / 1e9:.2f}." in text
    assert f"{tiny['scan'] / tiny.total():.0%}".replace("%", " % of Vim-Ti") in text


def test_a_single_model_is_shown_by_its_parts(capsys):
    assert cli.main(["flops", "vim_tiny_patch16_224"]) == 0
    out = capsys.readouterr().out
    shares = dict(re.findall(r"^(\w[\w ]+?) +([\d.]+) +[\d.]+%$", out, re.MULTILINE))
    assert list(shares) == ["projections", "scan", "patch embedding", "convolutions", "norms", "head"]
    assert sum(map(float, shares.values())) == pytest.approx(1.539, abs=0.003)
    assert f"{9 * 16 * 197 * 384 * 2 * 24 / 1e9:.3f}" in out and f"{16 * 197 * 384 * 2 * 24 / 1e9:.3f} G exp" in out
