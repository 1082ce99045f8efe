"""Learned optimizers for optax: `tx = mulo.load(name_or_path, ...)`."""

from mulo import scaling
from mulo.checks import coord_check
from mulo.layouts import convert
from mulo.loading import list_pretrained
from mulo.loading import load
from mulo.loading import read
from mulo.loading import save

__all__ = ["convert", "coord_check", "list_pretrained", "load", "read", "save",
           "scaling"]
