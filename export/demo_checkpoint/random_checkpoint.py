"""Write a checkpoint of the demo's structure with random weights: `python -m demo_checkpoint.random_checkpoint OUT`.

It paints noise, and serves wherever only the structure matters: exports, contracts, speed.
"""

import argparse
from pathlib import Path

from demo_checkpoint.networks import build_networks, save_checkpoint


def main() -> None:
    """Command line: OUT is the folder to write, the seed decides every weight."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of the demo's structure with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    arguments = parser.parse_args()
    save_checkpoint(arguments.out, build_networks(arguments.seed), half=arguments.half)


if __name__ == "__main__":
    main()
