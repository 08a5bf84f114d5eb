"""Prints the table of operations and transformations: python -m tests.conformance"""

import contextlib

from tests import conftest  # noqa: F401  (eight devices, strict dtypes)

import jaxsoftmax  # isort: skip
from tests.conformance import laws  # isort: skip
from tests.conformance.operations import OPERATIONS  # isort: skip


def main() -> None:
    """One line per operation and law: the largest difference of each transformation, custom_vjp then custom_jvp."""
    for name, operation in OPERATIONS.items():
        print(f"\n{name}")
        for law in laws.LAWS:
            expected = laws.expected(law, operation)
            found = []
            for forward in (False, True):
                with jaxsoftmax.forward_mode() if forward else contextlib.nullcontext():
                    found.append(laws.evaluate(law, operation, operation.function, forward))
            for key, value in expected.items():
                cells = [
                    f"{laws.differences(actual[key], value):9.1e}" if key in actual else "  refused" for actual in found
                ]
                print(f"  {key:40s} {'  '.join(cells)}")


if __name__ == "__main__":
    main()
