"""Learned optimizers for optax: `tx = mulo.load(name_or_path, ...)`."""

from mulo.convert import convert
from mulo.load import list_pretrained
from mulo.load import load
from mulo.load import read
from mulo.load import save

__all__ = ["convert", "list_pretrained", "load", "read", "save"]
