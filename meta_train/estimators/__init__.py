"""One gradient estimator per file; each exports `make(task, opt_fn, ...)`."""

import functools

from learned_opt import base

get = functools.partial(base.get, __name__)
names = functools.partial(base.names, __name__)
