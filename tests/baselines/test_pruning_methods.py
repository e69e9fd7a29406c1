"""OBC, SparseGPT and Wanda: brute force, closed forms, mask sizes, bad input."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import InputMoments
from sqs_jax.baselines import obc, round_to_nearest, sparse_gpt, wanda
from sqs_jax.baselines.obc_allocation import allocate

RNG = np.random.default_rng(0)
KERNEL = (RNG.standard_t(4, (24, 10)) * 0.1).astype(np.float32)
X = RNG.standard_normal((300, 24)) @ RNG.standard_normal((24, 24))
SECOND = (X.T @ X / 300).astype(np.float32)
MOMENTS = {"kernel": InputMoments(SECOND)}
METHODS = [obc, sparse_gpt, wanda]


def lost(leaf, kernel=KERNEL):
    error = sqs_jax.materialize(leaf).reshape(kernel.shape) - kernel
    return float(np.sum(error * (SECOND @ error)))


def greedy(weights, hessian, steps, group=None, keep=0):
    """Prune an output by definition: the weight of least loss after refitting comes first.

    Every group of `group` inputs keeps `keep` weights.
    """
    kept = list(range(weights.size))
    group = group or weights.size
    current = weights.astype(np.float64)
    for _ in range(steps):
        inverse = np.linalg.inv(hessian[np.ix_(kept, kept)])
        cost = current[kept] ** 2 / np.diagonal(inverse)
        there = np.bincount(np.array(kept) // group, minlength=weights.size // group)
        cost[there[np.array(kept) // group] <= keep] = np.inf
        p = int(np.argmin(cost))
        current[kept] -= inverse[:, p] * current[kept[p]] / inverse[p, p]
        current[kept.pop(p)] = 0
    return current, kept


def test_exact_obs_is_the_greedy_solution():
    hessian = SECOND[:8, :8].astype(np.float64) + 0.1 * np.eye(8)
    weights = KERNEL[:8]
    for number in (1, 4, 7):  # of one output at a time: the traces are not merged
        for column in range(3):
            solution, kept = greedy(weights[:, column], hessian, number)
            output = jnp.asarray(weights[:, column : column + 1])
            second = jnp.asarray(hessian, "f4")
            mask = obc.prune(output, second, number)
            assert np.flatnonzero(np.asarray(mask)[:, 0]).tolist() == kept
            left, inverse = obc.reconstruct(output[:, 0], second, mask[:, 0])
            np.testing.assert_allclose(left, solution, rtol=2e-3, atol=1e-5)
            part = np.linalg.inv(hessian[np.ix_(kept, kept)])
            np.testing.assert_allclose(inverse[np.ix_(kept, kept)], part, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("structure", [(2, 4), (1, 3), (4, 4)])
def test_groups_keep_what_the_greedy_solution_keeps(structure):
    keep, group = structure
    hessian = SECOND[:12, :12].astype(np.float64) + 0.1 * np.eye(12)
    weights = KERNEL[:12, :4]
    mask = obc.prune_in_groups(jnp.asarray(weights), jnp.asarray(hessian, "f4"), keep, group)
    assert (np.asarray(mask).reshape(-1, group, 4).sum(1) == keep).all()
    for column in range(4):
        _, kept = greedy(weights[:, column], hessian, 12 // group * (group - keep), group, keep)
        assert np.flatnonzero(np.asarray(mask)[:, column]).tolist() == kept
    options = {"levels": 16, "calibration": MOMENTS, "structure": structure}
    leaf = obc.compress({"kernel": KERNEL}, **options)["kernel"]
    zeros = (leaf.codes == leaf.zeros).reshape(-1, group, 10).sum(1)
    assert (zeros >= group - keep).all()  # a kept weight may be rounded to 0 too
    alone = obc.compress({"kernel": KERNEL}, **{**options, "calibration": {}})["kernel"]
    size = np.abs(KERNEL).reshape(-1, group, 10)
    largest = np.argsort(np.argsort(-size, axis=1), axis=1) < keep  # without inputs, by magnitude
    pruned = (alone.codes == alone.zeros).reshape(-1, group, 10)
    assert pruned[~largest].all()


@pytest.mark.parametrize("block", [2, 4])
def test_blocks_are_the_greedy_solution(block):
    hessian = SECOND[:12, :12].astype(np.float64) + 0.1 * np.eye(12)
    for column in range(3):
        w, kept = KERNEL[:12, column].astype(np.float64), list(range(12))
        for number in range(1, 12 // block):
            inverse = np.linalg.inv(hessian[np.ix_(kept, kept)])
            parts = [slice(i, i + block) for i in range(0, len(kept), block)]
            cost = [w[kept][p] @ np.linalg.inv(inverse[p, p]) @ w[kept][p] for p in parts]
            p = parts[int(np.argmin(cost))]
            w[kept] -= inverse[:, p] @ np.linalg.inv(inverse[p, p]) @ w[kept][p]
            w[kept[p]] = 0
            del kept[p]
            problem = jnp.asarray(KERNEL[:12, column : column + 1]), jnp.asarray(hessian, "f4")
            mask = np.asarray(obc.prune(*problem, number, block))
            assert np.flatnonzero(mask[:, 0]).tolist() == kept
    leaf = obc.compress(
        {"kernel": KERNEL}, sparsity=0.5, block=block, levels=64, calibration=MOMENTS
    )["kernel"]
    zeros = (leaf.codes == leaf.zeros).reshape(-1, block, 10).all(1)
    assert zeros.mean() == pytest.approx(0.5, abs=0.03)


def test_the_dynamic_program_finds_the_best_choice():
    rng = np.random.default_rng(1)
    sizes = [np.sort(rng.integers(1, 40, n))[::-1] * 100 for n in (3, 4, 2, 4)]
    errors = [np.sort(rng.random(len(layer))) for layer in sizes]
    for budget in (4_000, 7_000, 11_000):
        best = min(
            (
                sum(e[i] for e, i in zip(errors, choice, strict=True))
                for choice in itertools.product(*(range(len(e)) for e in errors))
                if sum(s[i] for s, i in zip(sizes, choice, strict=True)) <= budget - 4
            ),
            default=None,
        )
        if best is None:
            with pytest.raises(ValueError, match=f"budget is {budget}; the smallest"):
                allocate(errors, sizes, budget)
            continue
        choice = allocate(errors, sizes, budget)
        assert sum(s[i] for s, i in zip(sizes, choice, strict=True)) <= budget
        total = sum(e[i] for e, i in zip(errors, choice, strict=True))
        assert total == pytest.approx(best)
    with pytest.raises(ValueError, match="as many numbers"):
        allocate([[1.0], [1.0, 2.0]], [[1.0], [1.0]], 5)


def test_structures_that_cannot_be_are_refused():
    options = {"levels": 16, "calibration": MOMENTS}
    with pytest.raises(ValueError, match="give one of them"):
        obc.compress({"kernel": KERNEL}, sparsity=0.5, structure=(2, 4), **options)
    with pytest.raises(ValueError, match="give one of them"):
        obc.compress({"kernel": KERNEL}, structure=(5, 4), **options)
    with pytest.raises(ValueError, match=r"kernel: structure .2, 7. needs rows.*it has 24"):
        obc.compress({"kernel": KERNEL}, structure=(2, 7), **options)
    with pytest.raises(ValueError, match=r"kernel: block 5 needs rows.*it has 24"):
        obc.compress({"kernel": KERNEL}, sparsity=0.5, block=5, **options)
    with pytest.raises(ValueError, match="block is 2 and structure"):
        obc.compress({"kernel": KERNEL}, structure=(2, 4), block=2, **options)


def test_greedy_pruning_is_near_the_best_mask():
    hessian, weights = SECOND[:8, :8] + 0.1 * np.eye(8), KERNEL[:8, :1].astype(np.float64)

    def loss(kept):
        gone = [i for i in range(8) if i not in kept]
        # The refitted remaining weights lose w_M^T ((H^-1)_MM)^-1 w_M
        part = np.linalg.inv(np.linalg.inv(hessian)[np.ix_(gone, gone)])
        return float((weights[gone].T @ part @ weights[gone]).item())

    best = min(map(loss, itertools.combinations(range(8), 4)))
    mask = obc.prune(jnp.asarray(weights, jnp.float32), jnp.asarray(hessian, jnp.float32), 4)
    assert loss(tuple(np.flatnonzero(np.asarray(mask)[:, 0]))) < 1.3 * best


def test_a_layer_prunes_where_it_loses_least():
    kernel = np.stack([KERNEL[:, 0], 100 * KERNEL[:, 1]], axis=1)
    mask = np.asarray(
        obc.prune(jnp.asarray(kernel), jnp.asarray(SECOND + np.eye(24, dtype="f4")), 20)
    )
    assert (~mask).sum() == 20 and (~mask[:, 0]).sum() > 15


def test_obq_without_correlation_is_round_to_nearest():
    eye = {"kernel": InputMoments(np.eye(24, dtype=np.float32))}
    leaf = obc.compress({"kernel": KERNEL}, sparsity=0.0, levels=7, calibration=eye)["kernel"]
    nearest = round_to_nearest.compress({"kernel": KERNEL}, levels=7)["kernel"]
    np.testing.assert_array_equal(leaf.codes, nearest.codes)


def test_wanda_prunes_by_its_score():
    compressed = wanda.compress({"kernel": KERNEL}, sparsity=0.5, levels=300, calibration=MOMENTS)
    pruned = sqs_jax.materialize(compressed["kernel"]) == 0
    score = np.abs(KERNEL) * np.sqrt(np.diagonal(SECOND))[:, None]
    for column in range(10):
        order = np.argsort(score[:, column])
        assert pruned[order[:12], column].all() and pruned[:, column].sum() <= 13


@pytest.mark.parametrize("method", METHODS)
def test_as_many_are_pruned_as_asked_and_codes_are_on_the_grid(method, tmp_path):
    kernel = KERNEL.reshape(2, 3, 4, 10)
    for sparsity in (0.0, 0.5, 0.9):
        compressed = method.compress(
            {"kernel": kernel}, sparsity=sparsity, levels=8, calibration=MOMENTS
        )
        leaf = compressed["kernel"]
        assert leaf.codes.shape == kernel.shape and leaf.codes.max() < 8
        zero = (sqs_jax.materialize(leaf) == 0).mean()
        assert zero >= sparsity - 1e-9 and (sparsity == 0 or zero < sparsity + 0.25)
        sqs_jax.save(tmp_path / "m.sqs", compressed)
        again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
        np.testing.assert_array_equal(again, sqs_jax.materialize(leaf))


def test_the_more_a_method_knows_the_less_it_loses():
    def losses(sparsity):
        options = {"sparsity": sparsity, "levels": 16, "calibration": MOMENTS}
        return [lost(m.compress({"kernel": KERNEL}, **options)["kernel"]) for m in METHODS]

    exact, together, alone = losses(0.0)
    assert exact < together < alone
    exact, *others = losses(0.5)
    assert exact < 0.5 * min(others)


def test_obq_is_the_greedy_solution():
    leaf = obc.compress({"kernel": KERNEL}, sparsity=0.0, levels=16, calibration=MOMENTS)["kernel"]
    hessian = np.asarray(obc._damped(jnp.asarray(SECOND)), np.float64)
    for column in range(3):
        scale, zero = float(leaf.scales[0, column]), float(leaf.zeros[0, column])
        w, due = KERNEL[:, column].astype(np.float64), list(range(24))
        codes = np.zeros(24, int)
        while due:
            inverse = np.linalg.inv(hessian[np.ix_(due, due)])
            code = np.clip(np.round(w[due] / scale + zero), 0, 15)
            error = w[due] - (code - zero) * scale
            beyond = np.abs(error) > 0.5001 * scale
            cost = np.where(beyond, -np.abs(error), error**2 / np.diagonal(inverse))
            j = int(np.argmin(cost))
            codes[due[j]] = code[j]
            w[due] -= inverse[:, j] * (error[j] / inverse[j, j])
            due.pop(j)
        assert (codes == leaf.codes[:, column]).mean() > 0.95  # float32: a tie may differ


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_pruned_is_refused_and_the_rest_copes(method):
    with pytest.raises(ValueError, match=r"sparsity is 1\.0"):
        method.compress({"kernel": KERNEL}, sparsity=1.0, levels=8, calibration=MOMENTS)
    with pytest.raises(ValueError, match="calibration has kernal"):
        bad = {"kernal": MOMENTS["kernel"]}
        method.compress({"kernel": KERNEL}, sparsity=0.5, levels=8, calibration=bad)
    nan = {"kernel": InputMoments(np.full((24, 24), np.nan, "f4"))}
    with pytest.raises(ValueError, match="kernel: second moments are not finite"):
        method.compress({"kernel": KERNEL}, sparsity=0.5, levels=8, calibration=nan)
    for turned, why in (
        (SECOND + KERNEL[:, :1], "not symmetric"),
        (SECOND - 9 * np.eye(24), "neg"),
    ):
        moments = {"kernel": InputMoments(turned.astype("f4"))}
        with pytest.raises(ValueError, match=f"kernel: second moments .*{why}"):
            method.compress({"kernel": KERNEL}, sparsity=0.5, levels=8, calibration=moments)
    few = X[:5]  # fewer samples than inputs: singular, and damped
    singular = {"kernel": InputMoments((few.T @ few / 5).astype("f4"))}
    kernel = KERNEL.copy()
    kernel[:, 3], kernel[:, 4] = 0, 0.25  # zero and constant rows
    compressed = method.compress({"kernel": kernel}, sparsity=0.5, levels=8, calibration=singular)
    values = sqs_jax.materialize(compressed["kernel"])
    assert np.isfinite(values).all() and (values[:, 3] == 0).all()
    silent = {"kernel": InputMoments(np.zeros((24, 24), "f4"))}  # inputs that are always 0
    compressed = method.compress({"kernel": KERNEL}, sparsity=0.5, levels=8, calibration=silent)
    values = sqs_jax.materialize(compressed["kernel"])
    assert np.isfinite(values).all() and (values == 0).mean() >= 0.5
    alone = method.compress({"kernel": KERNEL}, sparsity=0.5, levels=8, calibration={})
    assert (sqs_jax.materialize(alone["kernel"]) == 0).mean() >= 0.5
