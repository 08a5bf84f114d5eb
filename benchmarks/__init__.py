"""Speed, memory and accuracy of the library beside jax.nn, optax and torch: `python -m benchmarks`."""
