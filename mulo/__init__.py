"""Learned optimizers for optax: `tx = mulo.load(name_or_path, ...)`."""

try:
  from learned_opt.artifact import ArtifactError
except ModuleNotFoundError as e:  # a user's own learned_opt, imported instead
  if not (e.name or "").startswith("learned_opt."):
    raise
  import learned_opt
  raise ImportError(f"{learned_opt.__file__} hides the package learned_opt of "
                    "mulo. Rename it.") from e
from mulo import links
from mulo import scaling
from mulo._coord_check import CoordCheckReport
from mulo._coord_check import coord_check
from mulo._foreign_files import read_arrays
from mulo._hub import push
from mulo._loading import list_pretrained
from mulo._loading import load
from mulo._loading import read
from mulo._loading import save
from mulo._published_layouts import convert
from mulo._warnings import BeyondTrainingWarning
from mulo._warnings import StackWarning
from mulo._wrappers.local_updates import LocalUpdatesState
from mulo._wrappers.local_updates import local_updates
from mulo._wrappers.nowcast import nowcast
from mulo.diagnosis.doctor import doctor
from mulo.diagnosis.explain import explain
from mulo.diagnosis.probe import probe

__all__ = ["ArtifactError", "BeyondTrainingWarning", "CoordCheckReport",
           "LocalUpdatesState", "StackWarning", "convert", "coord_check",
           "doctor", "explain", "links", "list_pretrained", "load",
           "local_updates", "nowcast", "probe", "push", "read", "read_arrays",
           "save", "scaling"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
  return sorted(__all__)
