"""Changes that no test can notice, or need not, each with the reason."""

EQUIVALENTS = {
    "gradtx/kernels/shampoo.py::_power: jnp.where(values > 0, jnp.where(values > 0, values, 1.0) "
    "** exponent, 0.0) -> (jnp.where(values > 0, values, 1.0) ** exponent)": (
        "The momentum lies in the span of the gradients, so that it is 0 where an eigenvalue is."
    ),
    "gradtx/wrappers/hyperparameters.py::_Hyperparameters.advanced: "
    "jnp.asarray(optax.safe_increment(state.count)) -> optax.safe_increment(state.count)": (
        "What safe_increment returns is an array already."
    ),
    "gradtx/compose/conditions.py::_widened: jnp.asarray(number) -> number": (
        "Arrays of NumPy have astype too, and the conditional makes arrays of JAX of them."
    ),
    "gradtx/normalization/statistics.py::moments: jnp.ones -> jnp.zeros": (
        "Nothing is divided by the deviation there, so any epsilon will do."
    ),
    "gradtx/kernels/scale.py::WeightDecaySchedule: count -> (count + 1)": (
        "Only the class of the state of this transformation is used."
    ),
    "gradtx/wrappers/layout.py::_piece: jnp.asarray(gradient) -> gradient": (
        "Arrays of NumPy have a size, a shape and a dtype too, and no layout to keep."
    ),
    "gradtx/leaves.py::equation.compiled.step.wide: jnp.asarray(value) -> value": (
        "It runs in a compiled function, whose arguments are arrays of JAX."
    ),
    "gradtx/wrappers/steps.py::counted: jnp.asarray(optax.safe_increment(count)) -> "
    "optax.safe_increment(count)": "What safe_increment returns is an array already.",
    "gradtx/kernels/noise.py::_add_noise: g + deviation * jax.random.normal(key, g.shape, g.dtype) "
    "-> (g - (deviation * jax.random.normal(key, g.shape, g.dtype)))": (
        "The noise has the same distribution with either sign."
    ),
    "gradtx/kernels/matrices.py::_matrices: jnp.asarray(leaf) -> leaf": (
        "Arrays of NumPy are transposed and reshaped too, and arrays for the transformation inside."
    ),
    "gradtx/kernels/mars.py::_mars: -5 -> ((-5) + 1)": (
        "Any small unit will do in which the largest gradients have room to differ."
    ),
    "gradtx/normalization/_measure.py::_needs_unit: jnp.finfo(count.dtype).maxexp * 9 -> "
    "(jnp.finfo(count.dtype).maxexp / 9)": (
        "Variances of 1 and more are then measured in units too, which only takes longer."
    ),
    "gradtx/wrappers/rates.py::scheduled_rates_of: jnp.asarray(count) -> count": (
        "The counts of states are arrays, and schedules take those of NumPy too."
    ),
    "gradtx/kernels/curvature.py::_solve_dense: 1.0 -> 0.5": (
        "It only keeps a division by zero out of the branch that is not taken."
    ),
}
