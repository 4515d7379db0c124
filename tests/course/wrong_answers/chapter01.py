"""Answers to the exercises of chapter 01 as learners give them, and the hint that each must get."""

import torch

from minivim.lti import LinearGaussian, kalman_filter


def outputs(h, u, w, v, C, D, move, late=False):
    y = []
    for t in range(len(u)):
        new = move(h, t)
        y.append(C @ (new if late else h) + D @ u[t] + v[t])
        h = new
    return torch.stack(y)


def simulate_late(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, v, C, D, lambda h, t: A @ h + B @ u[t] + w[t], late=True)


def simulate_without_slips(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, v, C, D, lambda h, t: A @ h + B @ u[t])


def simulate_exact_sensor(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, 0 * v, C, D, lambda h, t: A @ h + B @ u[t] + w[t])


def simulate_row_vectors(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, v, C, D, lambda h, t: h @ A + B @ u[t] + w[t])


def simulate_without_inputs(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, v, C, D, lambda h, t: A @ h + w[t])


def simulate_one_input(A, B, C, D, h, u, w, v):
    return outputs(h, u, w, v, C, D, lambda h, t: A @ h + B[:, 0] * u[t, 0] + w[t])


def fuse_other_sign(mean, variance, y, R):
    gain = variance / (variance + R)
    return mean - gain * (y - mean), (1 - gain) * variance


def fuse_exchanged(mean, variance, y, R):
    return (R * y + variance * mean) / (variance + R), variance * R / (variance + R)


def fuse_average(mean, variance, y, R):
    return (mean + y) / 2, variance * R / (variance + R)


def fuse_adding(mean, variance, y, R):
    return mean + variance / (variance + R) * (y - mean), variance + R


def fuse_upside_down(mean, variance, y, R):
    gain = R / (variance + R)
    return mean + gain * (y - mean), (1 - gain) * variance


def fuse_gain_as_variance(mean, variance, y, R):
    gain = variance / (variance + R)
    return mean + gain * (y - mean), gain


def fuse_squares(mean, variance, y, R):
    gain = variance**2 / (variance**2 + R**2)
    return mean + gain * (y - mean), (1 - gain) * variance**2


def fuse_roots(mean, variance, y, R):
    gain = variance**0.5 / (variance**0.5 + R**0.5)
    return mean + gain * (y - mean), (1 - gain) * variance


def predict_two_states(A, B, Q, mean, covariance, u):
    return (A @ mean)[:2] + (B @ u)[:2], (A @ covariance @ A.T + Q)[:2, :2]


def predict_untransposed(A, B, Q, mean, covariance, u):
    return A @ mean + B @ u, A @ covariance @ A + Q


def predict_transposed_first(A, B, Q, mean, covariance, u):
    return A @ mean + B @ u, A.T @ covariance @ A + Q


def predict_without_Q(A, B, Q, mean, covariance, u):
    return A @ mean + B @ u, A @ covariance @ A.T


def predict_Q_moved(A, B, Q, mean, covariance, u):
    return A @ mean + B @ u, A @ (covariance + Q) @ A.T


def predict_without_input(A, B, Q, mean, covariance, u):
    return A @ mean, A @ covariance @ A.T + Q


def gain_of(C, S, covariance):
    return covariance @ C.T @ torch.linalg.pinv(S)


def correct_without_R(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T, covariance)
    return mean + K @ (y - C @ mean), covariance - K @ C @ covariance


def correct_R_twice(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T + R, covariance)
    return mean + K @ (y - C @ mean), covariance - K @ C @ covariance + K @ R @ K.T


def correct_R_added(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T + R, covariance)
    return mean + K @ (y - C @ mean), covariance - K @ C @ covariance + R


def correct_by_y(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T + R, covariance)
    return mean + K @ y, covariance - K @ C @ covariance


def correct_growing(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T + R, covariance)
    return mean + K @ (y - C @ mean), covariance + K @ C @ covariance


def correct_mean_only(C, R, mean, covariance, y):
    K = gain_of(C, C @ covariance @ C.T + R, covariance)
    return mean + K @ (y - C @ mean), covariance


def back_untransposed(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A @ torch.linalg.inv(predicted_covariance)
    return mean + G @ (next_mean - predicted_mean), covariance + G @ (next_covariance - predicted_covariance) @ G.T


def back_from_the_mean(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A.T @ torch.linalg.inv(predicted_covariance)
    return mean + G @ (next_mean - mean), covariance + G @ (next_covariance - predicted_covariance) @ G.T


def back_growing(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A.T @ torch.linalg.inv(predicted_covariance)
    return mean + G @ (next_mean - predicted_mean), covariance - G @ (next_covariance - predicted_covariance) @ G.T


def back_as_if_told(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A.T @ torch.linalg.inv(predicted_covariance)
    return mean + G @ (next_mean - predicted_mean), covariance - G @ predicted_covariance @ G.T


def back_from_the_covariance(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A.T @ torch.linalg.inv(predicted_covariance)
    return mean + G @ (next_mean - predicted_mean), covariance + G @ (next_covariance - covariance) @ G.T


def back_by_own_inverse(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    G = covariance @ A.T @ torch.linalg.inv(covariance)
    return mean + G @ (next_mean - predicted_mean), covariance + G @ (next_covariance - predicted_covariance) @ G.T


def back_not_at_all(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    return mean, covariance


def correct_overwritten(C, R, mean, covariance, y):
    covariance = covariance - covariance @ C.T @ torch.linalg.solve(C @ covariance @ C.T + R, C @ covariance)
    return mean + covariance @ C.T @ torch.linalg.solve(C @ covariance @ C.T + R, y - C @ mean), covariance


def correct_by_noise_alone(C, R, mean, covariance, y):
    gain = covariance @ C.T @ torch.linalg.inv(R)
    return mean + gain @ (y - C @ mean), covariance - gain @ C @ covariance


def follow(A, C, Q, R, mean, covariance, y, zero=False, frozen=False, early=False, falsy=False, late=False):
    means = []
    for t, each in enumerate(y):
        moved = t > 0 and not (frozen and y[t - 1] is None)
        if moved or early:
            mean, covariance = A @ mean, A @ covariance @ A.T + Q
        if zero or (bool(each) if falsy else each is not None):
            K = covariance @ C.T @ torch.linalg.inv(C @ covariance @ C.T + R)
            mean, covariance = mean + K[:, 0] * ((each or 0.0) - (C @ mean)[0]), covariance - K @ C @ covariance
        means.append(A @ mean if late else mean)
    return torch.stack(means)


def gaps_as_zeros(*arguments):
    return follow(*arguments, zero=True)


def gaps_stop_time(*arguments):
    return follow(*arguments, frozen=True)


def gaps_predict_first(*arguments):
    return follow(*arguments, early=True)


def gaps_falsy(*arguments):
    return follow(*arguments, falsy=True)


def gaps_without_Q(A, C, Q, R, *rest):
    return follow(A, C, 0 * Q, R, *rest)


def gaps_without_R(A, C, Q, R, *rest):
    return follow(A, C, Q, 0 * R, *rest)


def gaps_begin_measured(A, C, Q, R, mean, covariance, y):
    return follow(A, C, Q, R, mean, covariance, [y[0] or 0.0, *y[1:]])


def gaps_kept_late(*arguments):
    return follow(*arguments, late=True)


def gaps_sure(A, C, Q, R, mean, covariance, y):
    means = []
    for each in y:
        K = covariance @ C.T @ torch.linalg.inv(C @ covariance @ C.T + R)
        if each is not None:
            mean = mean + K @ (each - C @ mean)
        covariance = covariance - K @ C @ covariance
        means.append(mean)
        mean, covariance = A @ mean, A @ covariance @ A.T + Q
    return torch.stack(means)


def rank_of(*blocks):
    return int(torch.linalg.matrix_rank(torch.cat(blocks)))


def seen_not_unseen(A, sensors):
    return {name: rank_of(C, C @ A, C @ A @ A) for name, C in sensors.items()}


def unseen_now(A, sensors):
    return {name: len(A) - rank_of(C) for name, C in sensors.items()}


def unseen_in_two_steps(A, sensors):
    return {name: len(A) - rank_of(C, C @ A) for name, C in sensors.items()}


def unseen_by_rows(A, sensors):
    return {name: 3 * len(C) - rank_of(C, C @ A, C @ A @ A) for name, C in sensors.items()}


def unseen_transposed(A, sensors):
    return {name: len(A) - rank_of(C, C @ A.T, C @ A.T @ A.T) for name, C in sensors.items()}


def unseen_in(block, A, sensors):
    return {name: len(A) - rank_of(*(block(C, k) for k in range(len(A)))) for name, C in sensors.items()}


def unseen_from_the_second_block(A, sensors):
    return unseen_in(lambda C, k: C @ torch.linalg.matrix_power(A, k + 1), A, sensors)


def unseen_squares(A, sensors):
    return unseen_in(lambda C, k: (C @ A) ** k if k else C, A, sensors)


def unseen_empty_columns(A, sensors):
    blocks = {name: [C @ torch.linalg.matrix_power(A, k) for k in range(len(A))] for name, C in sensors.items()}
    return {name: int((torch.cat(each) == 0).all(0).sum()) for name, each in blocks.items()}


def unseen_in_three_steps(A, sensors):
    return {name: len(A) - rank_of(C, C @ A, C @ A @ A) for name, C in sensors.items()}


def filters(parts, unit, levels, u, y):
    return [kalman_filter(LinearGaussian(**parts, Q=level * unit), u, y) for level in levels]


def slip_unlikely(parts, unit, levels, u, y):
    return min(zip(filters(parts, unit, levels, u, y), levels, strict=True), key=lambda pair: pair[0].log_likelihood)[1]


def slip_closest(parts, unit, levels, u, y):
    left = [(y[:, 0] - each.mean[:, 0]).square().mean() for each in filters(parts, unit, levels, u, y)]
    return levels[left.index(min(left))]


def slip_by_surprise(parts, unit, levels, u, y):
    left = [(y[:, 0] - each.predicted_mean[:, 0]).square().mean() for each in filters(parts, unit, levels, u, y)]
    return levels[left.index(min(left))]


def slip_everywhere(parts, unit, levels, u, y):
    scores = [each.log_likelihood for each in filters(parts, torch.eye(len(unit)).to(unit), levels, u, y)]
    return levels[scores.index(max(scores))]


def slip_place(parts, unit, levels, u, y):
    scores = [each.log_likelihood for each in filters(parts, unit, levels, u, y)]
    return scores.index(max(scores))


def slip_score(parts, unit, levels, u, y):
    return max(each.log_likelihood.item() for each in filters(parts, unit, levels, u, y))


WRONG = {
    "01.1": [
        (simulate_late, r"must be read from h\[t\], before the state moves on"),
        (simulate_without_slips, "w is missing"),
        (simulate_exact_sensor, "v is missing"),
        (simulate_without_inputs, r"B u\[t\] is missing"),
        (simulate_one_input, "first difference at"),
        (simulate_row_vectors, r"A transposed \(h @ A\)"),
    ],
    "01.2": [
        (fuse_exchanged, "the weights are exchanged"),
        (fuse_average, "plain average"),
        (fuse_adding, "variances do not add here"),
        (fuse_other_sign, "yours is mean - y"),
        (fuse_roots, "squares already"),
        (fuse_upside_down, "upside down"),
        (fuse_gain_as_variance, "this is the gain"),
        (fuse_squares, "do not square them"),
    ],
    "01.3": [
        (predict_untransposed, "the second A must be transposed"),
        (predict_transposed_first, r"it is A P A\^T"),
        (predict_two_states, r"shape \(2,\); it must be a tensor of shape \(3,\)"),
        (predict_without_Q, "you forgot Q"),
        (predict_Q_moved, "after the move"),
        (predict_without_input, "lacks the input"),
    ],
    "01.4": [
        (correct_without_R, "you forgot R"),
        (correct_R_twice, "R does not belong to the new covariance"),
        (correct_R_added, "R is not added"),
        (correct_overwritten, "yours was overwritten"),
        (correct_by_noise_alone, "not by R alone"),
        (correct_by_y, "multiplies the surprise"),
        (correct_growing, "must shrink"),
        (correct_mean_only, "still the one before"),
    ],
    "01.5": [
        (back_untransposed, "A must be transposed in the gain"),
        (back_from_the_mean, "compare the next mean with its prediction"),
        (back_growing, "has the wrong sign"),
        (back_as_if_told, "leaves unsure"),
        (back_from_the_covariance, "not with the covariance at t"),
        (back_by_own_inverse, "that of the predicted covariance"),
        (back_not_at_all, "nothing of the future"),
    ],
    "01.6": [
        (gaps_as_zeros, "not a measurement of 0"),
        (gaps_stop_time, "time goes on"),
        (gaps_predict_first, "the first step is a correction"),
        (gaps_falsy, "0.0 is a measurement, too"),
        (gaps_without_Q, "Q is missing"),
        (gaps_without_R, "R is missing"),
        (gaps_begin_measured, r"first difference at \[0, 0\]"),
        (gaps_kept_late, r"predictions for t\+1"),
        (gaps_sure, "the covariance is not corrected either"),
    ],
    "01.7": [
        (seen_not_unseen, "count those that are not"),
        (unseen_now, "you looked at C alone"),
        (unseen_in_two_steps, "two steps are not enough"),
        (unseen_by_rows, "not the number of rows"),
        (unseen_from_the_second_block, "begin with C itself"),
        (unseen_squares, "not the square of C A"),
        (unseen_empty_columns, "count the rank, not empty columns"),
        (unseen_in_three_steps, r"len\(A\), not 3"),
        (unseen_transposed, "A transposed"),
    ],
    "01.8": [
        (slip_unlikely, "least likely"),
        (slip_closest, "whatever the truth"),
        (slip_by_surprise, "smallest prediction error"),
        (slip_everywhere, "not level times the identity"),
        (lambda *arguments: 0.6, "yours 0.6, expected 2.5"),
        (slip_score, "the log-likelihood itself"),
        (slip_place, "the level itself"),
    ],
}
