"""Chapter 01, state-space models: the checkers."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.course.exercises.checking import compare, exercise
from minivim.lti import LinearGaussian, kalman_filter, observability, rts_smoother, simulate

SEEDS = (0, 1, 2)
PAIR = "(mean, covariance)"


def random_model(seed: int, N: int = 2, M: int = 1, P: int = 1) -> tuple[LinearGaussian, torch.Generator]:
    """A model without symmetries that could hide a mistake, and the generator it came from."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def covariance(size: int) -> Tensor:
        root = matrix(size, size)
        return root @ root.mT + 0.5 * torch.eye(size, dtype=torch.float64)

    A = matrix(N, N)
    A = A / torch.linalg.matrix_norm(A, 2)
    parts = A, matrix(N, M), matrix(P, N), matrix(P, M), covariance(N), covariance(P), matrix(N), covariance(N)
    return LinearGaussian(*parts), generator


def random_input(model: LinearGaussian, length: int, generator: torch.Generator) -> Tensor:
    """u (L, M)."""
    return torch.randn(length, model.B.shape[-1], generator=generator, dtype=torch.float64)


def text(tensor: Float[Tensor, "..."]) -> str:
    """A small tensor with two decimals, as in `[[1.00, 0.50], [0.00, 1.00]]`."""
    if tensor.ndim == 0:
        return f"{tensor.item():.2f}"
    return f"[{', '.join(text(each) for each in tensor)}]"


@exercise("01.1", "A simulator")
def simulator(answer: Callable) -> None:
    """The outputs y (L, P) from the start, the inputs and both noises."""
    for seed in SEEDS:
        model, generator = random_model(seed, N=2 + seed, M=1 + seed % 2, P=3 - seed)
        u = random_input(model, 4 + seed, generator)
        h, y = simulate(model, u, generator)
        A, B, C, D, _, _ = model.at(0)
        w = torch.cat((h[1:] - h[:-1] @ A.mT - u[:-1] @ B.mT, torch.zeros_like(h[:1])))  # the last one is never seen
        v = y - h @ C.mT - u @ D.mT

        def outputs(A: Tensor, w: Tensor, start: Tensor, late: bool, B: Tensor = B, C=C, D=D, u=u, v=v) -> Tensor:
            """y of the loop, with the state read before (or, if late, after) it is moved."""
            states = [start]
            for t in range(len(u)):
                states.append(A @ states[-1] + B @ u[t] + w[t])
            return torch.stack(states[1:] if late else states[:-1]) @ C.mT + u @ D.mT + v

        causes = {
            "y[t] must be read from h[t], before the state moves on to h[t+1]": outputs(A, w, h[0], late=True),
            "w is missing: it is added when the state moves": outputs(A, 0 * w, h[0], late=False),
            "B u[t] is missing: it is added when the state moves": outputs(A, w, h[0], late=False, B=0 * B),
            "v is missing: it is added to every measurement": y - v,
            "D u[t] is missing in the measurement": y - u @ D.mT,
            "you used A transposed (h @ A); write A @ h": outputs(A.mT, w, h[0], late=False),
            "these are the states; the measurements C h + D u + v are asked for": h,
        }
        given = f"A = {text(A)}, {len(u)} steps"
        compare(answer(A, B, C, D, h[0], u, w, v), y, "y", given=given, causes=causes)


@exercise("01.2", "Fuse two numbers")
def fuse(answer: Callable) -> None:
    """(mean, variance) of a state known as N(mean, variance) after a measurement y with variance R, as floats."""
    for mean, variance, y, R in [(10.0, 4.3, 13.0, 2.0), (0.0, 1.7, 5.0, 9.0), (-2.0, 0.5, -3.0, 0.1)]:
        parts = ([[1.0]], [[1.0]], [[1.0]], [[0.0]], [[0.0]], [[R]], [mean], [[variance]])
        model = LinearGaussian(*(torch.tensor(part, dtype=torch.float64) for part in parts))
        one = torch.tensor([[y]], dtype=torch.float64)
        filtered = kalman_filter(model, 0 * one, one)
        expected = filtered.mean.item(), filtered.covariance.item()
        gain, both = variance / (variance + R), variance * R / (variance + R)
        deviations, squares = (variance**power / (variance**power + R**power) for power in (0.5, 2))
        causes = {
            "the weights are exchanged: the surer of the two must count more": (y + gain * (mean - y), both),
            "the gain is upside down: variance stands above in variance / (variance + R), not R": (
                mean + (1 - gain) * (y - mean),
                gain * variance,
            ),
            "the difference is y - mean; yours is mean - y": (mean - gain * (y - mean), both),
            "this is the plain average; weigh by how sure each one is": ((mean + y) / 2, both),
            "the mean is right; variances do not add here, their inverses do": (expected[0], variance + R),
            "the mean is right; the variance is upside down, it is 1 / (1/variance + 1/R)": (expected[0], 1 / both),
            "the mean is right; the variance is (1 - gain) times the old one": (expected[0], gain * variance),
            "the mean is right; this is the gain, and the variance is (1 - gain) times the old one": (
                expected[0],
                gain,
            ),
            "variance and R are variances already: do not square them": (
                mean + squares * (y - mean),
                (1 - squares) * variance**2,
            ),
            "variance and R are squares already: do not take their roots": (
                mean + deviations * (y - mean),
                (1 - deviations) * variance,
            ),
            "the gain belongs to the difference y - mean, and is added to the mean": (gain * y, both),
        }
        given = f"mean = {mean}, variance = {variance}, y = {y}, R = {R}"
        compare(answer(mean, variance, y, R), expected, "(mean, variance)", given=given, causes=causes)


@exercise("01.3", "Predict")
def predict(answer: Callable) -> None:
    """(mean, covariance) of h[t+1] from those of h[t]."""
    for seed in SEEDS:
        model, generator = random_model(seed, N=2 + seed, M=1 + seed % 2)
        A, B, _, _, Q, _ = model.at(0)
        u = random_input(model, 1, generator)
        blind = replace(model, C=0 * model.C)  # a measurement that sees nothing leaves only the prediction
        filtered = kalman_filter(blind, u.repeat(2, 1), torch.zeros(2, 1, dtype=torch.float64))
        mean, covariance = filtered.predicted_mean[1], filtered.predicted_covariance[1]
        m, P = model.mean, model.covariance
        causes = {
            "the mean lacks the input: add B u": (A @ m, covariance),
            "you used A transposed for the mean": (A.mT @ m + B @ u[0], covariance),
            "you wrote A P A; the second A must be transposed": (mean, A @ P @ A + Q),
            "you wrote A^T P A; it is A P A^T": (mean, A.mT @ P @ A + Q),
            "you forgot Q: w adds its own uncertainty": (mean, A @ P @ A.mT),
            "a covariance needs A on both sides: A P A^T": (mean, A @ P + Q),
            "Q is added after the move, not before it": (mean, A @ (P + Q) @ A.mT),
        }
        found = answer(A, B, Q, m, P, u[0])
        compare(found, (mean, covariance), PAIR, given=f"A = {text(A)}, covariance = {text(P)}", causes=causes)


@exercise("01.4", "Correct")
def correct(answer: Callable) -> None:
    """(mean, covariance) of h[t] after a measurement, from those before it."""
    for seed in SEEDS:
        model, generator = random_model(seed, N=3, P=1 + seed % 2)
        model = replace(model, D=0 * model.D)
        _, _, C, _, _, R = model.at(0)
        m, P = model.mean, model.covariance
        u = random_input(model, 1, generator)
        y = simulate(model, u, generator)[1]
        filtered = kalman_filter(model, u, y)
        mean, covariance = filtered.mean[0], filtered.covariance[0]
        gain = P @ C.mT @ torch.linalg.inv(C @ P @ C.mT + R)
        without = P @ C.mT @ torch.linalg.pinv(C @ P @ C.mT)
        unscaled, innovation = P @ C.mT, y[0] - C @ m
        over_noise = unscaled @ torch.linalg.inv(R)
        late = covariance @ C.mT @ torch.linalg.inv(C @ covariance @ C.mT + R)
        causes = {
            "you forgot R in S = C P C^T + R": (m + without @ innovation, P - without @ C @ P),
            "R does not belong to the new covariance: it is in S, and so in the gain": (
                mean,
                covariance + gain @ R @ gain.mT,
            ),
            "the gain multiplies the surprise y - C m, not y": (m + gain @ y[0], covariance),
            "the surprise is y - C m; yours is C m - y": (m - gain @ innovation, covariance),
            "the covariance must shrink: P - K C P, not P + K C P": (mean, P + gain @ C @ P),
            "the covariance is still the one before the measurement": (mean, P),
            "the gain is divided by S = C P C^T + R, not by R alone": (
                m + over_noise @ innovation,
                P - over_noise @ C @ P,
            ),
            "the gain of the mean needs the covariance before the measurement; yours was overwritten": (
                m + late @ innovation,
                covariance,
            ),
            "the gain P C^T must be divided by S": (m + unscaled @ innovation, P - unscaled @ C @ P),
        }
        if len(R) == 1:  # else the shapes do not fit
            causes["R is not added to the new covariance: it has done its work in S"] = mean, covariance + R
        found = answer(C, R, m, P, y[0])
        compare(found, (mean, covariance), PAIR, given=f"C = {text(C)}, R = {text(R)}", causes=causes)


@exercise("01.5", "One step back")
def step_back(answer: Callable) -> None:
    """(mean, covariance) of h[t] given all measurements, from the filter at t and the smoother at t+1."""
    for seed in SEEDS:
        model, generator = random_model(seed)
        u = random_input(model, 4, generator)
        filtered = kalman_filter(model, u, simulate(model, u, generator)[1])
        means, covariances = rts_smoother(model, filtered)
        A, m, P = model.A, filtered.mean[0], filtered.covariance[0]
        m_predicted, P_predicted = filtered.predicted_mean[1], filtered.predicted_covariance[1]
        gain = P @ A.mT @ torch.linalg.inv(P_predicted)

        def step(gain: Tensor, m=m, P=P, before=m_predicted, P_before=P_predicted, later=(means, covariances)) -> tuple:
            """The step with any gain."""
            return m + gain @ (later[0][1] - before), P + gain @ (later[1][1] - P_before) @ gain.mT

        expected = step(gain)
        causes = {
            "A must be transposed in the gain: J = P A^T inverse(P_predicted)": step(
                P @ A @ torch.linalg.inv(P_predicted)
            ),
            "the gain must be divided by the predicted covariance of t+1": step(P @ A.mT),
            "compare the next mean with its prediction, not with the mean at t": (
                m + gain @ (means[1] - m),
                expected[1],
            ),
            "this is the filter at t: nothing of the future is in it": (m, P),
            "the change of the covariance has the wrong sign: P + J (next - predicted) J^T": (
                expected[0],
                2 * P - expected[1],
            ),
            "the covariance needs J on both sides: J (...) J^T": (
                expected[0],
                P + gain @ (covariances[1] - P_predicted),
            ),
            "the covariance lacks the old one: P + ...": (expected[0], expected[1] - P),
            "the covariance lacks what the state at t+1 leaves unsure: J next_covariance J^T": (
                expected[0],
                P - gain @ P_predicted @ gain.mT,
            ),
            "compare the next covariance with its prediction, not with the covariance at t": (
                expected[0],
                P + gain @ (covariances[1] - P) @ gain.mT,
            ),
            "the inverse in the gain is that of the predicted covariance, not of the covariance at t": step(
                P @ A.mT @ torch.linalg.inv(P)
            ),
        }
        found = answer(A, m, P, m_predicted, P_predicted, means[1], covariances[1])
        compare(found, (means[0], covariances[0]), PAIR, given=f"A = {text(A)}", causes=causes)


def follow(model: LinearGaussian, y: list[float | None], mistake: str = "") -> tuple[Tensor, Tensor]:
    """The means (L, N) after and before each step's correction, by a filter that makes the mistake."""
    A, _, C, _, Q, R = model.at(0)
    Q, R = Q * (mistake != "no Q"), R * (mistake != "no R")
    mean, covariance, means, before = model.mean, model.covariance, [], []
    for t, each in enumerate(y):
        if mistake == "early" or t > 0 and not (mistake == "frozen" and y[t - 1] is None):
            mean, covariance = A @ mean, A @ covariance @ A.mT + Q
        before.append(mean)
        seen = bool(each) if mistake == "falsy" else each is not None
        gain = covariance @ C.mT / (C @ covariance @ C.mT + R)
        if seen or mistake == "zero":
            mean = mean + (gain * ((each or 0.0) - C @ mean)).sum(1)
        if seen or mistake in ("zero", "sure"):
            covariance = covariance - gain @ C @ covariance
        means.append(mean)
    return torch.stack(means), torch.stack(before)


def gap_causes(model: LinearGaussian, y: list[float | None]) -> dict[str, Tensor]:
    """The means that the usual mistakes with missing measurements give."""
    causes = {
        "a missing measurement is not a measurement of 0: leave the correction out": "zero",
        "time goes on while nothing is measured: predict at those steps, too": "frozen",
        "mean and covariance are those of h[0]: the first step is a correction, not a prediction": "early",
        "0.0 is a measurement, too, and `if y[t]` skips it: ask whether y[t] is None": "falsy",
        "without a measurement, the covariance is not corrected either": "sure",
        "Q is missing: each prediction makes the covariance wider": "no Q",
        "R is missing: no measurement is exact": "no R",
    }
    means, before = follow(model, y)
    wrong = {cause: follow(model, y, mistake)[0] for cause, mistake in causes.items()}
    later = torch.cat((before[1:], (model.A @ means[-1])[None]))
    wrong["these are the predictions; the means after each measurement are asked for"] = before
    wrong["these are the predictions for t+1; keep each mean before you predict"] = later
    return wrong


@exercise("01.6", "A tunnel")
def gaps(answer: Callable) -> None:
    """The filter's means (L, N) where some measurements are None, and one is 0."""
    for seed in SEEDS:
        model, generator = random_model(seed)
        model = replace(model, B=0 * model.B, D=0 * model.D, mean=model.mean + 3)
        u = random_input(model, 7, generator)
        y = simulate(model, u, generator)[1]
        y[5] = 0
        seen = torch.ones(7, 1, 1, dtype=torch.float64)
        seen[[1, 2, 4 - seed % 2, *[0] * (seed == 2)]] = 0
        expected = kalman_filter(replace(model, C=seen * model.C), u, y).mean
        measured = [y[t].item() if seen[t] else None for t in range(7)]
        A, _, C, _, Q, R = model.at(0)
        found = answer(A, C, Q, R, model.mean, model.covariance, list(measured))
        given = "y = [" + ", ".join("None" if each is None else f"{each:.2f}" for each in measured) + "]"
        compare(found, expected, "the means", given=given, causes=gap_causes(model, measured))


@exercise("01.7", "Which sensor sees it all?")
def unseen(answer: Callable) -> None:
    """For each sensor, how many directions of the state it never sees."""
    pushed = torch.tensor([[1.0, 1.0, 0.5], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    pair = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.2, 0.9]], dtype=torch.float64)
    three = {"position": [[1, 0, 0]], "speed": [[0, 1, 0]], "push": [[0, 0, 1]], "two": [[0, 1, 0], [0, 0, 1]]}
    four = [[0.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5], [-0.5, 0.0, -0.5, 0.0]]  # no inverse
    readings_of_four = {"a sum": [[0, 0, 1, 1]], "a difference": [[0, 1, 0, -1]], "two": [[0, 0, 1, 0], [1, 0, 0, 2]]}
    rank = torch.linalg.matrix_rank
    for A, readings in ((pushed, three), (pair, three), (torch.tensor(four, dtype=torch.float64), readings_of_four)):
        sensors = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in readings.items()}
        N = len(A)
        ranks = {name: int(rank(observability(A, C))) for name, C in sensors.items()}
        causes = {
            "these are the directions that are seen (the rank); count those that are not": ranks,
            "you looked at C alone: what is hidden now may show after the next steps": {
                name: N - int(rank(C)) for name, C in sensors.items()
            },
            "two steps are not enough: with N states, N measurements are needed": {
                name: N - int(rank(torch.cat((C, C @ A)))) for name, C in sensors.items()
            },
            "the rows begin with C itself, not with C A": {
                name: N - int(rank(observability(A, C @ A))) for name, C in sensors.items()
            },
            "a state that moves nothing alone may still be hidden in a sum: count the rank, not empty columns": {
                name: int((observability(A, C) == 0).all(0).sum()) for name, C in sensors.items()
            },
            "the next block is the one before times A: C A A, not the square of C A": {
                name: N - int(rank(torch.cat([C, *((C @ A) ** power for power in range(1, N))])))
                for name, C in sensors.items()
            },
            "N is the number of states, len(A), not 3": {
                name: N - int(rank(observability(A, C)[: 3 * len(C)])) for name, C in sensors.items()
            },
            "N is the number of states, len(A), not the number of rows": {
                name: N * len(C) - ranks[name] for name, C in sensors.items()
            },
            "you used A transposed: the rows are C, C A, C A A": {
                name: N - int(rank(observability(A.mT, C))) for name, C in sensors.items()
            },
        }
        found = answer(A, dict(sensors))
        expected = {name: N - ranks[name] for name in sensors}
        compare(found, expected, "the unseen directions", given=f"A = {text(A)}", causes=causes)


@exercise("01.8", "How much does it slip?")
def slip(answer: Callable) -> None:
    """The level q, out of a list, for which the measurements are most likely under Q = q * unit."""
    levels = [0.003, 0.02, 0.15, 0.6, 2.5, 12.0]
    values = {"A": [[1, 1], [0, 1]], "B": [[0.5], [1]], "C": [[1, 0]], "D": [[0]], "R": [[4]]}
    values |= {"mean": [0, 0], "covariance": [[1, 0], [0, 1]]}
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    unit = torch.tensor([[0, 0], [0, 1]], dtype=torch.float64)
    models = {level: LinearGaussian(**parts, Q=level * unit) for level in levels}
    for seed, true in ((1, 2.5), (6, 2.5), (7, 0.6), (4, 0.02)):
        generator = torch.Generator().manual_seed(seed)
        u = random_input(models[true], 40, generator)
        y = simulate(models[true], u, generator)[1]
        filtered = [kalman_filter(model, u, y) for model in models.values()]
        scores = [each.log_likelihood.item() for each in filtered]
        left = [(y - each.mean[:, :1]).square().mean().item() for each in filtered]
        surprise = [(y - each.predicted_mean[:, :1]).square().mean().item() for each in filtered]
        everywhere = [replace(model, Q=level * torch.eye(2, dtype=torch.float64)) for level, model in models.items()]
        scores_everywhere = [kalman_filter(model, u, y).log_likelihood.item() for model in everywhere]
        likeliest = levels[scores.index(max(scores))]
        causes = {
            "this is the least likely level; the largest log-likelihood is asked for": levels[
                scores.index(min(scores))
            ],
            "the filter that believes every measurement stays closest to them, whatever the truth; "
            "compare log-likelihoods": levels[left.index(min(left))],
            "the smallest prediction error does not ask how sure the filter was; compare log-likelihoods": levels[
                surprise.index(min(surprise))
            ],
            "Q is level * unit, not level times the identity": levels[scores_everywhere.index(max(scores_everywhere))],
            "this is the place in the list; the level itself is asked for": levels.index(likeliest),
            "this is the log-likelihood itself; the level that gives it is asked for": max(scores),
        }
        given = f"40 measurements of a robot that slips with q = {true}"
        found = answer(dict(parts), unit, list(levels), u, y)
        compare(found, likeliest, "the level", given=given, causes=causes)
