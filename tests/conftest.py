"""A hostile process: whatever passes here keeps its promises under a user's strictest settings.

The environment is set before jax is first imported, because the number of fake devices is
read once, when the backend starts.
"""

import os
from importlib.metadata import version

# Most of the tests' time is compilation. The older code generator takes half of it; jaxlib 0.12
# does not have it any more, and ends the process at a flag that it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else "",
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

# Tests never time anything, and the first example of a test compiles.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
