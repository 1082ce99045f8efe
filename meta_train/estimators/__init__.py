"""One gradient estimator per file; each exports `make(task, opt_fn, ...)`."""

import functools

from learned_opt import registry

get = functools.partial(registry.get, __name__)
names = functools.partial(registry.names, __name__)
