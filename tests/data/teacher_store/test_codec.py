"""Targets to bytes and back: what they take, and what they lose."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gemma_train.data.example import Layout, Row
from gemma_train.data.teacher_store.codec import codec
from gemma_train.errors import UserError
from gemma_train.samplers import Counts, Dense, Gumbel, Multinomial, Priority, Sampler, TopK
from tests.data.teacher_store.made import record_of

VOCABULARY, LENGTH = 262_144, 48


def made_row(sampler: Sampler, vocabulary: int = VOCABULARY, silent: int = 0) -> Row:
    """A row of a synthetic teacher, whose last positions may carry no loss."""
    row = Row(*map(np.copy, _made(sampler, vocabulary)))
    row.weights[LENGTH - silent :] = 0
    return row


@cache
def _made(sampler: Sampler, vocabulary: int) -> Row:
    """p ~ rank^-e, e about 1.3, and the ids of the ranks others at every position."""
    random = np.random.default_rng(0)
    row = Layout(length=LENGTH, candidates=sampler.candidates).padding(1).row(0)
    row.tokens[:] = random.integers(0, vocabulary, LENGTH)
    row.weights[:] = 1
    for position in range(LENGTH):
        p = np.arange(1, vocabulary + 1.0) ** -random.uniform(0.9, 1.7)
        ids = random.permutation(vocabulary)
        drawn, weights = draw(sampler, p / p.sum(), random)
        row.candidates[position], row.probabilities[position] = ids[drawn], weights
    return row


def draw(sampler: Sampler, p: np.ndarray, random) -> tuple[np.ndarray, np.ndarray]:
    """(ranks, weights): written a second time, apart from the kernel that does it on a device."""
    count = sampler.candidates
    match sampler:
        case TopK():
            drawn = np.arange(count)
        case Gumbel():
            drawn = np.argsort(-(np.log(p) + random.gumbel(size=p.size)))[:count]
        case Multinomial() | Counts():
            drawn = random.choice(p.size, count, p=p)
        case Priority():
            ratio = p / random.random(p.size)
            order = np.argsort(-ratio)[: count + 1]
            return order[:-1], np.maximum(p[order[:-1]], ratio[order[-1]])
    if isinstance(sampler, Counts):
        return drawn, np.full(count, 1 / count)
    first = np.isin(np.arange(count), np.unique(drawn, return_index=True)[1])
    weights = np.where(first, p[drawn], 0)
    return drawn, weights / weights.sum()


def through(sampler: Sampler, row: Row, vocabulary: int = VOCABULARY):
    """(the record's bytes, what is decoded of them)."""
    made = codec(sampler, vocabulary=vocabulary, length=LENGTH)
    record = made.encode(row)
    return record, made.decode(record)


def dense(ids: np.ndarray, weights: np.ndarray, vocabulary: int) -> np.ndarray:
    """The target as a vector over the vocabulary."""
    return np.bincount(ids, weights, vocabulary)


ALL = (TopK(), Gumbel(), Multinomial(), Counts(), Priority(candidates=64), TopK(candidates=1))


@pytest.mark.parametrize("sampler", ALL, ids=str)
@pytest.mark.parametrize("vocabulary", [300, 70_000, VOCABULARY])
def test_every_candidate_comes_back_and_its_weight_nearly(sampler, vocabulary):
    row = made_row(sampler, vocabulary)
    _, found = through(sampler, row, vocabulary)
    np.testing.assert_array_equal(found.tokens, row.tokens)
    assert found.taught.all()
    assert found.candidates.dtype == np.int32 and found.probabilities.dtype == np.float32
    for position in range(LENGTH):
        ids, weights = row.candidates[position], row.probabilities[position]
        assert found.candidates[position].tolist() == sorted(ids)
        there = dense(ids, weights, vocabulary)
        here = dense(found.candidates[position], found.probabilities[position], vocabulary)
        large = there > 1e-8
        if isinstance(sampler, Priority):  # to the multiple of half of tau below or above
            unit = np.float32(weights.min()) / 2
            np.testing.assert_allclose(here[large], there[large], atol=unit, rtol=2**-9)
            assert abs(here.sum() - there.sum()) < 1.01 * unit
        else:
            np.testing.assert_allclose(here[large], there[large], rtol=0.2)
            assert np.abs(here - there).max() < 5e-3


@pytest.mark.parametrize("sampler", [TopK(), Gumbel(), Multinomial()], ids=str)
def test_what_quantisation_costs_is_under_a_thousandth_of_a_nat(sampler):
    """The divergence of the stored target from the true one; both sum to 1."""
    row = made_row(sampler)
    _, found = through(sampler, row)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    losses = []
    for position in range(LENGTH):
        true = dense(row.candidates[position], row.probabilities[position], VOCABULARY)
        kept = dense(found.candidates[position], found.probabilities[position], VOCABULARY)
        some = kept > 0
        losses.append((kept[some] * np.log(kept[some] / true[some])).sum())
    assert 0 < np.mean(losses) < 6e-4
    assert max(losses) < 1.5e-3


@pytest.mark.parametrize("candidates", [16, 64, 250])
def test_priority_is_rounded_without_bias(candidates):
    """One position's weights, those at tau among them, stored with different ids many times."""
    sampler = Priority(candidates=candidates)
    kept = np.sort(_made(sampler, VOCABULARY).probabilities[7])
    at_tau = kept == kept[0]
    assert 2 < at_tau.sum() < candidates - 2
    random, found = np.random.default_rng(0), []
    for _ in range(100):
        row = made_row(sampler)
        row.probabilities[:] = kept
        for position in range(LENGTH):
            row.candidates[position] = np.sort(random.choice(VOCABULARY, candidates, replace=False))
        found.append(through(sampler, row)[1].probabilities)
    every = np.concatenate(found).astype(np.float64)
    assert (every[:, at_tau] == every[:, :1]).all()  # of tau its unit alone is rounded
    off = every.mean(axis=0) - kept
    error = every.std(axis=0) / np.sqrt(len(every)) + 1e-7
    assert (np.abs(off) < 5 * error).all()
    assert abs(off.sum()) < 5 * every.sum(axis=1).std() / np.sqrt(len(every))
    assert np.ptp(every, axis=0).all()  # the test would pass for weights kept as they are
    again = through(sampler, row)[1].probabilities
    np.testing.assert_array_equal(again, found[-1])


@pytest.mark.parametrize("sampler", [Priority(candidates=16), Counts(candidates=16)], ids=str)
def test_what_is_unbiased_stays_so_when_it_is_stored(sampler):
    """The mean of many stored targets against what they were drawn from."""
    p, mean, error = _mean_of_stored(sampler)
    assert (np.abs(mean - p) < 5 * error).all()
    assert abs(mean[16:].sum() - p[16:].sum()) < 5e-3
    assert abs(mean.sum() - 1) < 5e-3


def test_what_is_biased_is_told_from_it():
    p, mean, error = _mean_of_stored(Gumbel(candidates=16))
    assert (np.abs(mean - p) > 5 * error).any()
    assert abs(mean[16:].sum() - p[16:].sum()) > 5e-3


def _mean_of_stored(sampler: Sampler) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(p, mean of 100 rows' stored targets, its standard error), over a vocabulary of 300."""
    random, vocabulary = np.random.default_rng(0), 300
    p = np.arange(1, vocabulary + 1.0) ** -1.2
    p /= p.sum()
    drawn = []
    for _ in range(100):
        row = Layout(length=LENGTH, candidates=sampler.candidates).padding(1).row(0)
        row.weights[:] = 1
        for position in range(LENGTH):
            row.candidates[position], row.probabilities[position] = draw(sampler, p, random)
        _, found = through(sampler, row, vocabulary)
        pairs = zip(found.candidates, found.probabilities, strict=True)
        drawn += [dense(ids, weights, vocabulary) for ids, weights in pairs]
    every = np.stack(drawn)
    return p, every.mean(axis=0), every.std(axis=0) / np.sqrt(len(every)) + 1e-12


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 2**31 - 1])
def test_ids_that_overflow_are_found(vocabulary):
    """A record whose steps add up to 2^32: 32 bits would bring them back to 0."""
    made = codec(TopK(candidates=512), vocabulary=vocabulary, length=1)
    steps = np.full(512, 2**23 if vocabulary == VOCABULARY else 2**30 + 2**24)
    count = 3 if vocabulary == VOCABULARY else 4
    planes = [(steps >> 8 * byte).astype(np.uint8) for byte in range(count)]
    record = made_of([[128], *[[0]] * count, *planes, np.ones(512)])
    with pytest.raises(ValueError, match="beyond the vocabulary"):
        made.decode(record)


def made_of(planes: list) -> bytes:
    return record_of(np.array(plane, np.uint8).tobytes() for plane in planes)


@pytest.mark.parametrize("unit", [0x0000, 0xF000, 0xFFFF], ids=hex)
def test_a_unit_of_weight_that_cannot_be_is_found(unit):
    """2^-25, 2^35, and the largest that there is room for."""
    made = codec(Priority(candidates=2), vocabulary=256, length=1)
    planes = [[128], [0], [unit & 255], [unit >> 8], [1, 1], [2, 2], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="unit of weight is out of range"):
        made.decode(made_of(planes))
    planes[2:4] = [[0], [24 << 2]]
    assert made.decode(made_of(planes)).probabilities.tolist() == [[1.0, 1.0]]


def test_a_position_without_weight_is_found():
    made = codec(TopK(candidates=2), vocabulary=256, length=1)
    with pytest.raises(ValueError, match="a position has no weight"):
        made.decode(made_of([[128], [0], [1, 1], [0, 0]]))


@pytest.mark.parametrize(
    "sampler", [TopK(candidates=3), Counts(candidates=3), Priority(candidates=3)]
)
def test_whatever_a_record_holds_its_weights_are_numbers_or_it_is_refused(sampler):
    made, random = codec(sampler, vocabulary=200, length=2), np.random.default_rng(0)
    codes, units = made.weights.code_bytes, made.weights.unit_bytes
    sizes = [1, 2, *[2] * units, 6, *[6] * codes]
    well = 0
    for _ in range(1500):
        planes = [random.integers(256, size=size) >> random.integers(6) for size in sizes]
        planes[0] = [192]
        try:
            found = made.decode(made_of(planes))
        except ValueError:
            continue
        well += 1
        assert np.isfinite(found.probabilities).all() and (found.probabilities >= 0).all()
        assert np.isfinite(found.probabilities.sum(axis=1)).all()
    assert well > 10


def test_counts_are_exact():
    row = made_row(Counts())
    _, found = through(Counts(), row)
    np.testing.assert_array_equal(found.probabilities, np.float32(1 / 256))


@pytest.mark.parametrize(
    ("sampler", "most"), [(TopK(), 640), (Gumbel(), 640), (Priority(candidates=64), 200)], ids=str
)
def test_a_token_takes_no_more_than_it_should(sampler, most):
    row = made_row(sampler)
    record, _ = through(sampler, row)
    assert len(record) / LENGTH < most


@pytest.mark.parametrize("kind", [TopK, Counts, Multinomial, Priority])
@pytest.mark.parametrize("candidates", [4, 16, 64, 256])
def test_what_it_is_said_to_take_is_rather_too_much(kind, candidates):
    sampler = kind(candidates=candidates)
    record, _ = through(sampler, made_row(sampler))
    estimate = codec(sampler, vocabulary=VOCABULARY, length=LENGTH).estimated_bytes
    repeats = kind in (Counts, Multinomial)  # which take less room
    assert 1.0 < estimate / (len(record) / LENGTH) < (2.5 if repeats else 1.35)


@pytest.mark.parametrize("power", [1.2, 1.7, 2.2])
@pytest.mark.parametrize("candidates", [16, 64, 256])
def test_storing_priority_adds_little_to_the_variance_of_drawing_it(candidates, power):
    """However sure the teacher is: the error of its stored target against that of the drawn one."""
    sampler, random = Priority(candidates=candidates), np.random.default_rng(0)
    p = np.arange(1, 4097.0) ** -power
    p /= p.sum()
    errors = []
    for _ in range(8):
        row = Layout(length=LENGTH, candidates=candidates).padding(1).row(0)
        row.weights[:] = 1
        for position in range(LENGTH):
            row.candidates[position], row.probabilities[position] = draw(sampler, p, random)
        _, found = through(sampler, row, 4096)
        for target in (row, found):
            pairs = zip(target.candidates, target.probabilities, strict=True)
            errors.append(np.mean([((dense(*pair, 4096) - p) ** 2).sum() for pair in pairs]))
    assert 1.0 < sum(errors[1::2]) / sum(errors[::2]) < 1.1


def test_positions_without_loss_take_no_room_and_come_back_without_targets():
    whole, half = made_row(TopK()), made_row(TopK(), silent=LENGTH // 2)
    record, found = through(TopK(), half)
    assert len(record) < 0.6 * len(through(TopK(), whole)[0])
    np.testing.assert_array_equal(found.taught, half.weights > 0)
    assert found.candidates.shape == (LENGTH // 2, 256)
    empty = made_row(TopK(), silent=LENGTH)
    record, found = through(TopK(), empty)
    assert not found.taught.any() and found.candidates.shape == (0, 256)
    assert len(record) < 500


@pytest.mark.parametrize("sampler", [TopK(), Counts(), Priority()], ids=str)
def test_damage_is_found_wherever_it_is(sampler):
    made = codec(sampler, vocabulary=VOCABULARY, length=LENGTH)
    record = made.encode(made_row(sampler))
    random = np.random.default_rng(0)
    whole = made.decode(record)
    for place in (*range(50), *random.integers(0, len(record), 50)):
        damaged = bytearray(record)
        damaged[place] ^= 1 << int(random.integers(8))
        try:
            found = made.decode(bytes(damaged))
        except ValueError:
            continue
        # A flag of zstandard's that means nothing; what it decodes to is right.
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one, other)
    for size in (0, 3, 40, len(record) // 2, len(record) - 1):
        with pytest.raises(ValueError):
            made.decode(record[:size])
    with pytest.raises(ValueError, match="length"):
        made.decode(record + b"x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.nan}, "no number"),
        ({"probabilities": -0.5}, "negative"),
        ({"candidates": VOCABULARY}, "none of 262,144 ids"),
        ({"candidates": -1}, "none of 262,144 ids"),
    ],
)
def test_what_is_no_target_is_not_stored(change, message):
    row = made_row(TopK())
    for name, value in change.items():
        getattr(row, name)[5, 7] = value
    with pytest.raises(ValueError, match=message):
        through(TopK(), row)


def test_weights_that_are_no_counts_are_not_stored_as_such():
    with pytest.raises(ValueError, match="not 1 / 256"):
        through(Counts(), made_row(TopK()))


def test_a_dense_target_is_refused():
    with pytest.raises(UserError, match=r"loss.sampler is Dense\(\): all of the vocabulary is too"):
        codec(Dense(), vocabulary=300, length=LENGTH)


def test_a_codec_can_be_told_from_another():
    made = codec(TopK(), vocabulary=VOCABULARY, length=LENGTH)
    with pytest.raises(ValueError):
        replace(made, candidates=255).decode(made.encode(made_row(TopK())))
