"""Over a corpus of right and wrong gradients: no false alarm, no miss, and the leaf named."""

import jax
import pytest

from benchmarks.gradient_corpus import CASES
from jaxgrad import check_grads

# Quick ones of every kind, in the default run; the others are slow.
QUICK = frozenset(
    [
        *("huge_parameters", "cancelling_constants", "constant_function", "relu_at_zero"),
        *("clip_edges", "safe_norm_at_zero", "square_root_of_tiny", "fast_oscillation"),
        *("twentieth_power", "host_function", "holomorphic", "norm_rule_at_zero"),
        *("missing_factor_two", "clipped_backward", "nan_norm_at_zero", "opposite_pair"),
        *("slope_beyond_both_sides", "numpy_noise", "float16_overflow", "rolled_by_one"),
        *("second_order_host_constant", "one_of_several_outputs"),
        "beside_leaves_without_gradient",
    ]
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else (pytest.mark.slow,))
        for case in CASES
    ],
)
def test_verdict(case):
    key = jax.random.fold_in(jax.random.key(0), CASES.index(case))
    with jax.numpy_rank_promotion("allow"):
        f, args = case.make(key)
        report = check_grads(
            f,
            *args,
            argnums=case.argnums,
            has_aux=case.has_aux,
            holomorphic=case.holomorphic,
            order=case.order,
        )
    assert report.ok is case.right, f"\n{report}"
    if case.leaf is not None:
        assert report.leaves[0].path == case.leaf, f"\n{report}"


def test_the_corpus_is_large_and_its_wrong_cases_have_leaves():
    right = [case for case in CASES if case.right]
    wrong = [case for case in CASES if not case.right]
    assert min(len(right), len(wrong)) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.leaf is not None for case in wrong) >= len(wrong) // 2


def test_quick_cases_are_in_the_corpus_and_of_both_kinds():
    quick = [case for case in CASES if case.name in QUICK]
    assert len(quick) == len(QUICK)
    assert min(sum(case.right for case in quick), sum(not case.right for case in quick)) >= 10
