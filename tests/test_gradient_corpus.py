"""Over a corpus of right and wrong gradients: no false alarm, no miss, and the leaf named."""

import jax
import pytest

from benchmarks.gradient_corpus import CASES
from jaxgrad import check_grads


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
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
