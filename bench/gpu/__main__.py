"""`python -m bench.gpu`, for a machine that has the packages and no `coevo` on its PATH."""

import argparse
import sys

from bench.gpu import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="what a card makes of coevo, in ten minutes")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
