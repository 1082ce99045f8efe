"""Learned optimizers for optax: `tx = mulo.load(name_or_path, ...)`."""

from learned_opt.artifact import ArtifactError
from mulo import scaling
from mulo.arrays import read_arrays
from mulo.checks import coord_check
from mulo.guard import BeyondTrainingWarning
from mulo.layouts import convert
from mulo.loading import list_pretrained
from mulo.loading import load
from mulo.loading import read
from mulo.loading import save

__all__ = ["ArtifactError", "BeyondTrainingWarning", "convert", "coord_check",
           "list_pretrained", "load", "read", "read_arrays", "save", "scaling"]
