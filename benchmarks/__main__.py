"""Runs every benchmark: `python -m benchmarks [--quick]`."""

import argparse

from benchmarks import accuracy, calibration, linear, speed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds, to see that everything runs")
    flags = ["--quick"] if parser.parse_args().quick else []
    speed.main(flags)
    linear.main(flags)
    accuracy.main(flags)
    calibration.main(flags)


if __name__ == "__main__":
    main()
