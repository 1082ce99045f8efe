"""A module that no weight file may import; imports and calls are reported.

fuzz.py writes files that name this module. The reports are audit events.
"""

import sys
from typing import Any

sys.audit("fuzz.trap", "imported")


def make(**settings: Any) -> None:
  """Report the call."""
  sys.audit("fuzz.trap", "called", settings)
