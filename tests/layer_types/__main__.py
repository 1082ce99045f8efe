"""Print docs/layer_types.md."""

import argparse

from . import page

argparse.ArgumentParser(prog="python -m tests.layer_types",
                        description=__doc__).parse_args()
print(page(), end="")
