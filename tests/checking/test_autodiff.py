"""Forward mode and complex arguments."""

import jax
import jax.numpy as jnp
import pytest
from jax.custom_derivatives import linear_call

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import with_backward


@pytest.mark.slow
def test_forward_mode(key):
    @jax.custom_jvp
    def f(x, y):
        return jnp.sum(jnp.sin(x) * y)

    @f.defjvp
    def _(primals, tangents):
        x, y = primals
        return f(x, y), jnp.sum(jnp.cos(x) * y * tangents[0] + 1.1 * jnp.sin(x) * tangents[1])

    args = (jax.random.normal(key, (5,)), jnp.arange(1.0, 6.0))
    for modes in (("fwd",), ("rev",), ("fwd", "rev")):
        report = check_grads(f, *args, argnums=(0, 1), modes=modes)
        assert {leaf.mode for leaf in report.leaves} == set(modes)
        assert {(x.path, x.verdict) for x in report.leaves} == {
            ("[0]", Verdict.AGREE),
            ("[1]", Verdict.WRONG),
        }
    large = check_grads(
        lambda x: f(x, jnp.ones(3000)), jax.random.normal(key, (3000,)), modes="fwd"
    )
    assert large.verdict is Verdict.AGREE


def test_forward_mode_of_a_while_loop():
    def f(x):
        return jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, 1.0 + 0 * x)
        )[1]

    assert check_grads(f, 1.5, modes=("fwd",)).verdict is Verdict.AGREE
    with pytest.raises(ValueError, match='reverse mode: .*modes=\\("fwd",\\)'):
        check_grads(f, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 2000])
def test_complex_arguments(key, size):
    real, imaginary = jax.random.normal(key, (2, size))
    z = jax.lax.complex(real, imaginary)

    def energy(z):
        return jnp.sum(jnp.abs(z) ** 2 * jnp.arange(1.0, size + 1) / size)

    report = check_grads(energy, z)
    assert report.verdict is Verdict.AGREE
    exact = jax.grad(energy)(z)
    if size == 4:
        leaf = report.leaves[0]
        assert leaf.numeric == pytest.approx(complex(exact[leaf.worst_index]), rel=1e-5)
    conjugate = with_backward(energy, lambda args, ct: (ct * jnp.conj(jax.grad(energy)(args[0])),))
    assert check_grads(conjugate, z).verdict is Verdict.WRONG


def test_a_backward_pass_that_cannot_be_mapped_is_run_one_cotangent_at_a_time():
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    @f.defjvp
    def rule(primals, tangents):
        slope = jnp.cos(primals[0])

        def times(slope, change):
            return slope * change

        return f(*primals), linear_call(times, times, slope, *tangents)

    report = check_grads(lambda x: jnp.sum(f(x)), jnp.arange(1.0, 4.0))
    assert report.verdict is Verdict.AGREE
    assert [i.name for i in report.identities if i.holds is None] == ["vmap"]
