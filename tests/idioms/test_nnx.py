"""Optimizers used by flax.nnx."""

import jax
import jax.numpy as jnp
from flax import nnx

from .both import both, gradients, train
from .networks import X


@both
def test_an_optimizer_of_nnx(lib, more):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lib.adamw(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(X) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(2)]
    return losses, model.kernel[...], optimizer.step[...]


@both
def test_an_optimizer_of_nnx_with_a_clip_before(lib, more):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lib.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(X) ** 2))(model)
    norm = lib.global_norm(grads)
    grads, _ = lib.clip_by_global_norm(0.1).update(grads, None)
    optimizer.update(model, grads)
    return norm, model.kernel[...], model.bias[...]


@both
def test_a_state_of_nnx_as_parameters(lib, more):
    graph, params = nnx.split(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param)
    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    params, _ = train(tx, params)
    return nnx.merge(graph, params)(X)


@both
def test_an_optimizer_of_nnx_for_some_parameters(lib, more):
    class Adapter(nnx.Param):
        """A parameter that is trained, next to others that are not."""

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.adapter = Adapter(jnp.ones(2))
    optimizer = nnx.Optimizer(model, lib.adam(0.1), wrt=Adapter)
    wanted = nnx.DiffState(0, Adapter)
    grads = nnx.grad(lambda m: jnp.sum((m(X) * m.adapter) ** 2), argnums=wanted)(model)
    optimizer.update(model, grads)
    return model.adapter[...], model.kernel[...]


@both
def test_the_state_of_an_optimizer_of_nnx(lib, more):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lib.adam(0.1), wrt=nnx.Param)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    mu = optimizer.opt_state[0].mu
    return mu["kernel"][...], optimizer.opt_state[0].count[...]


@both
def test_an_injected_rate_in_an_optimizer_of_nnx(lib, more):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.asarray(0.5)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    return model.kernel[...], optimizer.opt_state.hyperparams["learning_rate"][...]


@both
def test_a_line_search_in_an_optimizer_of_nnx(lib, more):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lib.lbfgs(), wrt=nnx.Param)
    graph, params = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.sum((nnx.merge(graph, params)(X) - 1.0) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    optimizer.update(model, grads, value=value, grad=grads, value_fn=loss)
    return model.kernel[...]
