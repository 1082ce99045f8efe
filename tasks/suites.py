"""Named suites of tasks, for meta-training, model selection and reporting.

A suite is {name of a task: section}. A section has the form of the sections in
`config.tasks`: "name" is the family, and most other entries are settings of the
family. Two entries are not: "augment" (see `tasks.augment`) and, except in the
training suites, "num_steps", the horizon.

Tasks of `heldout` differ from the tasks of the other suites:

* No pair of family and data set in `heldout` is in another suite.
* Each network is wider or deeper than every network of its family in the
  training suites.
* Horizons are longer.

The suites `prior_...` have more families and data sets, and cheap tasks: a step
takes at most 5 ms on one core. `prior_train` is for meta-training,
`prior_valid` for choosing recipes, and `prior_hidden` for one final comparison:
nobody looks at it before.

* No pair of family and data set is in two of them.
* A family in both of the first two has another data set and another width or
  depth in each.
* No family and no data set of `prior_hidden` is in another of them.
"""

import copy
from typing import Any, TypeAlias

from learned_opt import registry

Section: TypeAlias = dict[str, Any]
Suite: TypeAlias = dict[str, Section]

TRAINING = ("train_small", "train_wide")
# Suites that only a final comparison may run an optimizer on.
HIDDEN = ("prior_hidden",)

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

# Priors for other tasks than images in dense layers. No task needs files.
_PRIOR_TRAIN: Suite = {
    "diabetes": {"name": "table_mlp", "dataset": "diabetes", "width": 32,
                 "batch_size": 32, "num_steps": 300},
    "wine": {"name": "table_mlp", "dataset": "wine", "width": 16, "depth": 2,
             "norm": "layer", "batch_size": 16, "num_steps": 200},
    "friedman": {"name": "table_mlp", "dataset": "friedman1", "width": 32,
                 "batch_size": 128, "num_steps": 1000},
    "heavy_tails": {"name": "table_mlp", "dataset": "student_t", "width": 32,
                    "activation": "gelu", "batch_size": 64, "num_steps": 500},
    "low_rank": {"name": "table_mlp", "dataset": "low_rank", "width": 32,
                 "depth": 3, "activation": "tanh", "batch_size": 512,
                 "num_steps": 500},
    "waves": {"name": "siren", "dataset": "waves", "width": 32,
              "batch_size": 128, "num_steps": 1000},
    "mlp": {"name": "mlp", "dataset": "digits", "width": 64, "depth": 3,
            "batch_size": 64, "num_steps": 500},
    "autoencoder": {"name": "autoencoder", "dataset": "digits", "width": 64,
                    "batch_size": 128, "num_steps": 500},
    "denoising": {"name": "denoising", "dataset": "digits", "width": 64,
                  "batch_size": 64, "num_steps": 500},
    "vae": {"name": "vae", "dataset": "digits", "width": 64, "batch_size": 64,
            "num_steps": 500},
    "conv": {"name": "conv", "dataset": "digits", "width": 16,
             "batch_size": 32, "num_steps": 500},
    "pairs": {"name": "contrastive", "dataset": "digits", "width": 8,
              "batch_size": 32, "num_steps": 300},
    "mixer": {"name": "mixer", "dataset": "digits", "width": 16,
              "batch_size": 32, "num_steps": 500},
    "rows": {"name": "image_rnn", "dataset": "digits", "width": 16,
             "batch_size": 64, "num_steps": 500},
    "vit": {"name": "vit", "dataset": "digits", "width": 16, "patch": 4,
            "batch_size": 16, "num_steps": 500},
    "sums": {"name": "transformer_lm", "dataset": "sums", "width": 32,
             "length": 16, "norm": "rms", "batch_size": 16, "num_steps": 1000},
    "brackets": {"name": "transformer_lm", "dataset": "brackets", "width": 32,
                 "length": 16, "tied": True, "positions": "learned",
                 "batch_size": 16, "num_steps": 500},
    "brackets_rnn": {"name": "rnn_lm", "dataset": "brackets", "width": 32,
                     "length": 16, "batch_size": 16, "num_steps": 500},
}

# One run of all takes less than 25 seconds on one core, so that dozens of
# settings can be compared. Two tasks read pixels by dense layers; two need the
# files of MNIST.
_PRIOR_VALID: Suite = {
    "breast_cancer": {"name": "table_mlp", "dataset": "breast_cancer",
                      "width": 64, "depth": 2, "batch_size": 32,
                      "num_steps": 300},
    "scales": {"name": "table_mlp", "dataset": "scales", "standardize": False,
               "width": 64, "batch_size": 64, "num_steps": 1000},
    "photo": {"name": "siren", "dataset": "china", "width": 64, "depth": 3,
              "batch_size": 128, "num_steps": 1000},
    "vae": {"name": "vae", "dataset": "photos", "width": 128, "batch_size": 64,
            "num_steps": 500},
    "mlp": {"name": "mlp", **_MNIST, "standardize": True, "width": 128,
            "batch_size": 128, "num_steps": 1000},
    "pairs": {"name": "contrastive", "dataset": "photos", "width": 16,
              "batch_size": 16, "num_steps": 500},
    "mixer": {"name": "mixer", "dataset": "shapes", "patch": 4, "width": 32,
              "depth": 2, "batch_size": 16, "num_steps": 1000},
    "separable": {"name": "separable", "dataset": "shapes", "width": 16,
                  "batch_size": 32, "num_steps": 1000},
    "rows": {"name": "image_rnn", **_MNIST, "width": 32, "batch_size": 32,
             "num_steps": 500},
    "gated_lm": {"name": "gated_transformer", "dataset": "python",
                 "width": 32, "depth": 2, "tied": True, "batch_size": 8,
                 "num_steps": 1000},
}

# For one final comparison. Until then, no optimizer may be run on these tasks.
_PRIOR_HIDDEN: Suite = {
    "ratings": {"name": "factorization", "dataset": "ratings", "width": 32,
                "batch_size": 256, "num_steps": 1000},
    "poisson": {"name": "poisson", "dataset": "sources", "width": 32,
                "batch_size": 128, "num_steps": 1000},
    "points": {"name": "deep_sets", "dataset": "points", "width": 64,
               "batch_size": 32, "num_steps": 1000},
    "circuit": {"name": "table_transformer", "dataset": "friedman3",
                "width": 32, "depth": 2, "batch_size": 32, "num_steps": 500},
    "conv_lm": {"name": "conv_lm", "dataset": "tinyshakespeare", "width": 32,
                "depth": 4, "batch_size": 8, "num_steps": 1000},
    "diffusion": {"name": "diffusion", "dataset": "cifar10", "image_size": 8,
                  "width": 16, "batch_size": 16, "num_steps": 500},
}

# The tracks of experiments/board.py, which need no files. No pair of family and
# data set is in another suite: nothing was trained on or chosen by one.
_BOARD: Suite = {
    "perceptron": {"name": "mlp", "dataset": "shapes", "standardize": True,
                   "width": 64, "depth": 3, "batch_size": 64,
                   "num_steps": 500},
    "conv": {"name": "conv", "dataset": "shapes", "standardize": True,
             "width": 16, "depth": 3, "batch_size": 32, "num_steps": 500},
    "recurrent": {"name": "rnn_lm", "dataset": "sums", "width": 32,
                  "length": 16, "batch_size": 16, "num_steps": 500},
    "transformer": {"name": "gated_transformer", "dataset": "brackets",
                    "width": 32, "depth": 2, "length": 16, "batch_size": 8,
                    "num_steps": 500},
    "regression": {"name": "table_mlp", "dataset": "friedman2", "width": 64,
                   "depth": 2, "batch_size": 64, "num_steps": 500},
    "autoencoder": {"name": "autoencoder", "dataset": "photos", "width": 64,
                    "batch_size": 64, "num_steps": 500},
}

# Train losses that a run is to reach, by the rule of experiments/board.py:
# python -m experiments.board --workdir=... --entries=adamw_tuned --targets
BOARD_TARGETS: dict[str, float] = {
    "perceptron": 0.122, "conv": 0.206, "recurrent": 1.88, "transformer": 1.62,
    "regression": 0.0974, "autoencoder": 0.00556}

_SUITES: dict[str, Suite] = {
    "train_small": _TRAIN_SMALL, "train_wide": _TRAIN_WIDE,
    # 500 steps unless a section has its own horizon.
    "validation": {name: {"num_steps": 500, **section}
                   for name, section in _VALIDATION.items()},
    "heldout": {name: {**section, "num_steps": 2000}
                for name, section in _HELDOUT.items()},
    "prior_train": _PRIOR_TRAIN, "prior_valid": _PRIOR_VALID,
    "prior_hidden": _PRIOR_HIDDEN, "board": _BOARD}


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
        f"Unknown suite {name!r}; available: {', '.join(_SUITES)}."
        f"{registry.similar(name, _SUITES)}")
  return copy.deepcopy(_SUITES[name])
