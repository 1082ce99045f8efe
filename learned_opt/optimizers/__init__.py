"""One learned optimizer per file; each file exports `make(**settings)`."""

import functools

from learned_opt import base

all_settings = functools.partial(base.all_settings, __name__)
get = functools.partial(base.get, __name__)
names = functools.partial(base.names, __name__)
