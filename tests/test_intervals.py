"""Prediction intervals: they hold what they promise on average, and use no song's rating twice."""

import numpy as np
import pytest

from musemo.intervals import calibrate, conformal_multiple, held, learn_spread, unscaled

POWERS = (0, 0.25, 0.5, 0.75, 1)


def made_songs(songs, seed, *, told):
    "Make statistics, truth, ratings and spreads; errors follow the spread, which the sound tells."
    rng = np.random.default_rng(seed)
    statistics = rng.normal(size=(songs, 6))
    hint = statistics[:, :2] if told else rng.normal(size=(songs, 2))
    spread = 0.25 + 0.15 * np.tanh(2 * hint)
    truth = 0.2 * statistics[:, 2:4]
    size = spread if told else np.full_like(spread, 0.25)
    return statistics, truth, truth + 0.6 * size * rng.normal(size=truth.shape), spread


def judge(seed, *, told, train=200, val=24, test=60):
    "Learn, calibrate and judge on songs made anew: coverage and width, with and without spread."
    statistics, truth, rated, spread = made_songs(train + val + test, seed, told=told)
    a, b = train, train + val
    learnt = learn_spread(statistics[:a], rated[:a], spread[:a], range(a), powers=POWERS, folds=5)
    found = []
    for one in (learnt, unscaled(learnt)):
        one = calibrate(one, statistics[a:b], (truth - rated)[a:b], coverage=0.9)
        low, high = one.around(truth[b:], statistics[b:])
        found.append((held(rated[b:], low, high).mean(), (high - low).mean()))
    return found


def test_coverage_is_right_on_average_and_a_telling_spread_narrows():
    found = np.array([judge(seed, told=True) for seed in range(40)])  # (40, 2, 2)
    assert np.abs(found[:, :, 0].mean(0) - 0.9).max() < 0.02
    assert found[:, 0, 1].mean() < 0.95 * found[:, 1, 1].mean()


def test_a_spread_that_tells_nothing_costs_nothing():
    found = np.array([judge(seed, told=False) for seed in range(40)])
    assert np.abs(found[:, :, 0].mean(0) - 0.9).max() < 0.02
    assert found[:, 0, 1].mean() == pytest.approx(found[:, 1, 1].mean(), rel=0.01)


@pytest.mark.parametrize(("songs", "coverage"), [(8, 0.9), (3, 0.8), (0, 0.5)])
def test_too_few_songs_promise_nothing(songs, coverage):
    assert np.isinf(conformal_multiple(np.zeros((songs, 2)), coverage)).all()


def test_the_multiple_lies_between_the_two_ranks_of_the_guarantee():
    ratio = np.sort(np.random.default_rng(0).random((24, 1)), axis=0)
    assert ratio[21, 0] < conformal_multiple(ratio, 0.9)[0] < ratio[22, 0]  # 22 / 25 .. 23 / 25


def test_judged_songs_do_not_move_their_interval():
    statistics, truth, rated, spread = made_songs(120, 0, told=True)
    known = statistics[:80], rated[:80], spread[:80], range(80)
    learnt = learn_spread(*known, powers=POWERS, folds=5)
    error = (truth - rated)[80:100]
    one = calibrate(learnt, statistics[80:100], error, coverage=0.9)
    low, _ = one.around(truth[100:], statistics[100:])
    alone, _ = one.around(truth[110:111], statistics[110:111])
    assert np.allclose(low[10], alone[0])
