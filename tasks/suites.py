"""Named suites of tasks, for meta-training, model selection and reporting.

A suite is {name of a task: section}. A section has the form of the sections in
`config.tasks`: "name" is the family, and most other entries are settings of the
family. Two entries are not: "augment" (see `tasks.augment`) and, in
`validation` and `heldout`, "num_steps", the horizon.

Tasks of `heldout` differ from the tasks of the other suites:

* No pair of family and data set in `heldout` is in another suite.
* Each network is wider or deeper than every network of its family in the
  training suites.
* Horizons are longer.
"""

import copy
from typing import Any, TypeAlias

Section: TypeAlias = dict[str, Any]
Suite: TypeAlias = dict[str, Section]

TRAINING = ("train_small", "train_wide")

# Random factors on the parameters, see `tasks.augment.reparametrize`.
_SHIFTED: Section = {"level": "tensor", "low": 0.1, "high": 10.0}

# Cheap tasks that need no files: the data sets are digits and Python's source.
_TRAIN_SMALL: Suite = {
    "mlp_w16_d2": {"name": "mlp", "width": 16, "depth": 2},
    "mlp_w32_d4": {"name": "mlp", "width": 32, "depth": 4},
    "mlp_w32_d2_shifted": {"name": "mlp", "width": 32, "depth": 2,
                           "augment": _SHIFTED},
    "autoencoder_w32": {"name": "autoencoder", "width": 32},
    "conv_w8": {"name": "conv", "width": 8, "batch_size": 32},
    "vit_w16": {"name": "vit", "width": 16, "batch_size": 16},
    "lm_w16": {"name": "transformer_lm", "width": 16, "length": 16,
               "batch_size": 8},
    "rnn_w16": {"name": "rnn_lm", "width": 16, "length": 16, "batch_size": 8},
    "logistic": {"name": "logistic_regression"},
}

_MNIST: Section = {"dataset": "mnist", "image_size": 14}

# Wider networks, most of them on MNIST.
_TRAIN_WIDE: Suite = {
    **{f"mlp_w{width}_d{depth}": {
        "name": "mlp", **_MNIST, "width": width, "depth": depth}
       for width, depth in ((32, 1), (64, 3), (128, 2), (128, 6))},
    "mlp_w64_noisy": {"name": "mlp", **_MNIST, "width": 64,
                      "label_noise": 0.2},
    "mlp_w64_shifted": {"name": "mlp", **_MNIST, "width": 64,
                        "augment": _SHIFTED},
    "autoencoder_w64": {"name": "autoencoder", **_MNIST, "width": 64},
    "conv_w16": {"name": "conv", **_MNIST, "width": 16, "pooling": "max"},
    "conv_w16_norm": {"name": "conv", **_MNIST, "width": 16, "depth": 3,
                      "norm": "layer"},
    "vit_w32": {"name": "vit", **_MNIST, "width": 32, "patch": 7, "depth": 2},
    "lm_w32": {"name": "transformer_lm", "width": 32, "depth": 2},
    "lm_w32_tied": {"name": "transformer_lm", "width": 32, "tied": True,
                    "positions": "learned"},
    "rnn_w32": {"name": "rnn_lm", "width": 32, "cell": "lstm"},
}

# For choosing between recipes of meta-training. Compared with the tasks in
# the meta-training of pretrained optimizers, networks are wider or deeper, or
# images have more pixels. One family, vit, is new. No data set of `heldout` is
# used.
_VALIDATION: Suite = {
    "mlp_w128": {"name": "mlp", **_MNIST, "width": 128, "num_steps": 1000},
    "mlp_w128_hard": {"name": "mlp", **_MNIST, "standardize": True,
                      "pixel_noise": 0.7, "width": 128, "num_steps": 1000},
    "mlp_w64_d4": {"name": "mlp", "dataset": "mnist", "standardize": True,
                   "width": 64, "depth": 4},
    "conv_w16": {"name": "conv", **_MNIST, "width": 16, "norm": "layer"},
    "vit_w16": {"name": "vit", **_MNIST, "patch": 7, "width": 16,
                "batch_size": 16},
    "lm_w16": {"name": "transformer_lm", "width": 16, "length": 16},
    "rnn_w16": {"name": "rnn_lm", "width": 16, "length": 16}}

_CIFAR: Section = {
    "dataset": "cifar10", "image_size": 16, "standardize": True}
_SHAKESPEARE: Section = {"dataset": "tinyshakespeare", "length": 64}

# For reported results only: nothing may be chosen by these tasks.
_HELDOUT: Suite = {
    **{f"mlp_w{width}_d{depth}": {
        "name": "mlp", **_CIFAR, "width": width, "depth": depth}
       for width, depth in ((256, 3), (512, 3), (128, 12))},
    "autoencoder_w256": {"name": "autoencoder", **_CIFAR, "width": 256,
                         "depth": 2},
    "conv_w32": {"name": "conv", **_CIFAR, "width": 32, "depth": 3},
    "resnet_w16": {"name": "resnet", **_CIFAR, "width": 16, "stages": 3},
    "vit_w64": {"name": "vit", **_CIFAR, "width": 64, "depth": 3, "patch": 4},
    "lm_w64": {"name": "transformer_lm", **_SHAKESPEARE, "width": 64,
               "depth": 3},
    "lm_w64_wikitext": {"name": "transformer_lm", "dataset": "wikitext2",
                        "length": 64, "width": 64, "depth": 3},
    "rnn_w64": {"name": "rnn_lm", **_SHAKESPEARE, "width": 64,
                "cell": "lstm"},
}

_SUITES: dict[str, Suite] = {
    "train_small": _TRAIN_SMALL, "train_wide": _TRAIN_WIDE,
    # 500 steps unless a section has its own horizon.
    "validation": {name: {"num_steps": 500, **section}
                   for name, section in _VALIDATION.items()},
    "heldout": {name: {**section, "num_steps": 2000}
                for name, section in _HELDOUT.items()}}


def names() -> list[str]:
  """Return the names of the suites."""
  return list(_SUITES)


def get(name: str) -> Suite:
  """Return a copy of a suite, which the caller may change.

  Raises:
    ValueError: an unknown name.
  """
  if name not in _SUITES:
    raise ValueError(
        f"Unknown suite {name!r}; available: {', '.join(_SUITES)}.")
  return copy.deepcopy(_SUITES[name])
