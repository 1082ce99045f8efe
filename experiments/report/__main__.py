"""Write one page about a study: report.html, and report.md without plots.

python -m experiments.report --workdir=runs/board

The workdir is that of `experiments.studies.transfer` or `experiments.board`.
Steps are timed if the study was run with --cost, as the board always is.
"""

import pathlib

from experiments import command
from experiments import report


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()


def main(flags) -> None:
  """Write the page; print where it is."""
  print(report.write_page(pathlib.Path(flags.workdir)))


if __name__ == "__main__":
  command.run(define_flags, main, record=False)
