"""Eight simulated CPU devices, strict dtypes and ranks, and a compilation cache that outlives the run."""

import gc
import os
from pathlib import Path

# Read when jax starts, so before its import.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing leaves much for the collector to walk through and little to collect: a tenth of the time by its thresholds.
gc.set_threshold(50_000, 20, 50)

# Where each operation was written is a twentieth of the time, and no test reads it in a compiled program.
jax.config.update("jax_traceback_in_locations_limit", 0)

# A suite of small functions is mostly compile time: keep every one of them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config: pytest.Config) -> None:
    """An entry of the cache that another process is still writing is a miss, not an error."""
    for action in ("reading", "writing"):
        config.addinivalue_line("filterwarnings", f"ignore:Error {action} persistent compilation cache:UserWarning")
