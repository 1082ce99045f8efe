"""Layers of equinox and haiku, with the right answers."""

import jax.numpy as jnp

from mulo import scaling

from .kit import CONV_LOOK
from .kit import HEAD
from .kit import IMAGES
from .kit import MIDDLE
from .kit import NOT_LAST
from .kit import POSITIONS
from .kit import ROLE_OF_GAIN
from .kit import ROWS
from .kit import VECTOR
from .kit import equinox
from .kit import haiku
from .kit import matrix
from .kit import shape
from .kit import vectors

EQX = "equinox"
WEIGHT = matrix("weight")
EQUINOX = [
    (EQX, "Linear", equinox(lambda nn, i, o, k: nn.Linear(i, o, key=k)),
     WEIGHT),
    (EQX, "Linear, without bias", equinox(
        lambda nn, i, o, k: nn.Linear(i, o, use_bias=False, key=k)),
     lambda i, o: {"weight": (i, o)}, NOT_LAST),
    (EQX, "Linear, without bias", equinox(
        lambda nn, i, o, k: nn.Linear(i, o, use_bias=False, key=k)),
     lambda i, o: {"weight": (i, o, "output")}, ("last",),
     {"weight": "output"}, "error"),
    (EQX, "Linear of a scalar", equinox(
        lambda nn, i, o, k: nn.Linear("scalar", o, key=k)),
     lambda i, o: {"weight": (1, o), "bias": (VECTOR, o)}, ("first",)),
    (EQX, "Linear, stacked by vmap",
     lambda i, o: {"weight": shape(5, o, i), "bias": shape(5, o)}, WEIGHT),
    *[(EQX, f"Conv{n}d", equinox(
        lambda nn, i, o, k, n=n: getattr(nn, f"Conv{n}d")(i, o, 3, key=k)),
       matrix("weight", places=3**n)) for n in (1, 2, 3)],
    *[(EQX, f"ConvTranspose{n}d", equinox(
        lambda nn, i, o, k, n=n: getattr(nn, f"ConvTranspose{n}d")(
            i, o, 3, key=k)), matrix("weight", places=3**n))
      for n in (1, 2, 3)],
    (EQX, "Conv2d, without bias", equinox(
        lambda nn, i, o, k: nn.Conv2d(i, o, 3, use_bias=False, key=k)),
     lambda i, o: {"weight": (9 * i, o)}),
    (EQX, "Conv2d, depthwise", equinox(
        lambda nn, i, o, k: nn.Conv2d(i, o, 3, groups=i, key=k)),
     lambda i, o: {"weight": (9, o), "bias": (VECTOR, o)}, MIDDLE),
    (EQX, "Embedding", equinox(
        lambda nn, i, o, k: nn.Embedding(ROWS, o, key=k)),
     lambda i, o: {"weight": (1, o, "embedding")}, ("first",),
     {"weight": "embedding"}, "error"),
    (EQX, "LayerNorm", equinox(lambda nn, i, o, k: nn.LayerNorm(i)),
     vectors("weight", "bias")),
    (EQX, "LayerNorm over channels and places", equinox(
        lambda nn, i, o, k: nn.LayerNorm((i, 8, 8))),
     lambda i, o: {x: (VECTOR, 64 * i, "vector") for x in ("weight", "bias")},
     MIDDLE, ROLE_OF_GAIN, "a table, which decays"),
    (EQX, "RMSNorm", equinox(lambda nn, i, o, k: nn.RMSNorm(i)),
     vectors("weight", "bias")),
    (EQX, "GroupNorm", equinox(lambda nn, i, o, k: nn.GroupNorm(1, i)),
     vectors("weight", "bias")),
    (EQX, "BatchNorm",
     lambda i, o: {"weight": shape(i), "bias": shape(i)},
     vectors("weight", "bias")),
    (EQX, "WeightNorm of Linear", equinox(
        lambda nn, i, o, k: nn.WeightNorm(nn.Linear(i, o, key=k))),
     lambda i, o: matrix("layer/weight", "layer/bias")(i, o) | {
         "g": (VECTOR, o)}),
    (EQX, "WeightNorm of Conv2d", equinox(
        lambda nn, i, o, k: nn.WeightNorm(nn.Conv2d(i, o, 3, key=k))),
     lambda i, o: matrix("layer/weight", "layer/bias", 9)(i, o) | {
         "g": (VECTOR, o)}),
    (EQX, "SpectralNorm of Linear",
     lambda i, o: {"layer": {"weight": shape(o, i), "bias": shape(o)}},
     matrix("layer/weight", "layer/bias")),
    (EQX, "MultiheadAttention, with biases", equinox(
        lambda nn, i, o, k: nn.MultiheadAttention(
            i // HEAD, i, use_query_bias=True, use_key_bias=True,
            use_value_bias=True, use_output_bias=True, key=k)),
     lambda i, o: {f"{x}_proj/{y}": (i if y == "weight" else VECTOR, i)
                   for x in ("query", "key", "value", "output")
                   for y in ("weight", "bias")}, MIDDLE),
    (EQX, "PReLU", equinox(lambda nn, i, o, k: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    (EQX, "LSTMCell", equinox(lambda nn, i, o, k: nn.LSTMCell(i, o, key=k)),
     lambda i, o: {"weight_ih": (i, 4 * o), "weight_hh": (o, 4 * o),
                   "bias": (VECTOR, 4 * o)}, NOT_LAST),
    (EQX, "GRUCell", equinox(lambda nn, i, o, k: nn.GRUCell(i, o, key=k)),
     lambda i, o: {"weight_ih": (i, 3 * o), "weight_hh": (o, 3 * o),
                   "bias": (VECTOR, 3 * o), "bias_n": (VECTOR, o)}, NOT_LAST)]

HK = "haiku"
W = matrix("./w", "./b")
RUN = lambda cell, x: cell(x, cell.initial_state(2))
HAIKU = [
    (HK, "Linear", haiku(lambda hk, i, o, x: hk.Linear(o)(x)), W),
    *[(HK, f"Conv{n}D", haiku(
        lambda hk, i, o, x, n=n: getattr(hk, f"Conv{n}D")(o, 3)(x),
        2, *(6,) * n), matrix("./w", "./b", 3**n)) for n in (1, 2, 3)],
    *[(HK, f"Conv{n}DTranspose", haiku(
        lambda hk, i, o, x, n=n: getattr(hk, f"Conv{n}DTranspose")(o, 3)(x),
        2, *(6,) * n), matrix("./w", "./b", 3**n)) for n in (1, 2, 3)],
    (HK, "Conv2DTranspose, without bias", haiku(
        lambda hk, i, o, x: hk.Conv2DTranspose(o, 3, with_bias=False)(x),
        *IMAGES), lambda i, o: {"./w": (9 * i, o)}, tuple(POSITIONS),
     {"./w": scaling.Override(outputs=(2,))}, CONV_LOOK),
    (HK, "Conv2D, channels first",
     lambda i, o: {".": {"w": shape(3, 3, i, o), "b": shape(o, 1, 1)}},
     matrix("./w", "./b", 9)),
    (HK, "Conv2DTranspose, channels first",
     lambda i, o: {".": {"w": shape(3, 3, o, i), "b": shape(o, 1, 1)}},
     matrix("./w", "./b", 9)),
    (HK, "DepthwiseConv2D", haiku(
        lambda hk, i, o, x: hk.DepthwiseConv2D(1, 3)(x), *IMAGES),
     lambda i, o: {"./w": (9, i), "./b": (VECTOR, i)}, MIDDLE),
    (HK, "SeparableDepthwiseConv2D", haiku(
        lambda hk, i, o, x: hk.SeparableDepthwiseConv2D(1, 3)(x), *IMAGES),
     lambda i, o: {"~/depthwise_conv2_d/w": (3, i),
                   "~/depthwise_conv2_d_1/w": (3, i),
                   "~/depthwise_conv2_d_1/b": (VECTOR, i)}, MIDDLE),
    (HK, "Bias of channels", haiku(
        lambda hk, i, o, x: hk.Bias(bias_dims=[-1])(x), *IMAGES),
     vectors("./b")),
    (HK, "Bias of places and channels", haiku(
        lambda hk, i, o, x: hk.Bias()(x), *IMAGES),
     lambda i, o: {"./b": (VECTOR, 64 * i, "vector")}, MIDDLE,
     {"./b": "vector"}, "a table, which decays"),
    (HK, "Embed", lambda i, o: {".": {"embeddings": shape(ROWS, o)}},
     lambda i, o: {"./embeddings": (ROWS, o)}, ("first",)),
    (HK, "LayerNorm", haiku(
        lambda hk, i, o, x: hk.LayerNorm(-1, True, True)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "RMSNorm", haiku(lambda hk, i, o, x: hk.RMSNorm(-1)(x)),
     vectors("./scale")),
    (HK, "GroupNorm", haiku(lambda hk, i, o, x: hk.GroupNorm(1)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "InstanceNorm", haiku(
        lambda hk, i, o, x: hk.InstanceNorm(True, True)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "BatchNorm", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, True, 0.9)(x, True), *IMAGES),
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm of vectors", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, True, 0.9)(x, True)),
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm, channels first",
     lambda i, o: {".": {x: shape(1, i, 1, 1) for x in ("scale", "offset")}},
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm, without offset", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, False, 0.9)(x, True), *IMAGES),
     lambda i, o: {"./scale": (VECTOR, i, "vector")}, MIDDLE,
     {"./scale": "vector"}, "a table, which decays"),
    (HK, "MultiHeadAttention", haiku(
        lambda hk, i, o, x: hk.MultiHeadAttention(
            i // HEAD, HEAD, model_size=i, w_init=jnp.zeros)(x, x, x), 2, 6),
     lambda i, o: {f"{x}/{y}": (i if y == "w" else VECTOR, i)
                   for x in ("query", "key", "value", "linear")
                   for y in "wb"}, MIDDLE),
    (HK, "LSTM", haiku(lambda hk, i, o, x: RUN(hk.LSTM(o), x)),
     lambda i, o: {"linear/w": (i + o, 4 * o), "linear/b": (VECTOR, 4 * o)},
     NOT_LAST),
    (HK, "GRU", haiku(lambda hk, i, o, x: RUN(hk.GRU(o), x)),
     lambda i, o: {"./w_i": (i, 3 * o), "./w_h": (o, 3 * o),
                   "./b": (VECTOR, 3 * o)}, NOT_LAST),
    (HK, "VanillaRNN", haiku(lambda hk, i, o, x: RUN(hk.VanillaRNN(o), x)),
     lambda i, o: matrix("linear/w", "linear/b")(i, o) | matrix(
         "linear_1/w", "linear_1/b")(o, o), NOT_LAST),
    (HK, "Conv2DLSTM", haiku(
        lambda hk, i, o, x: RUN(hk.Conv2DLSTM((8, 8), o, 3), x), *IMAGES),
     lambda i, o: {"input_to_hidden/w": (9 * i, 4 * o),
                   "input_to_hidden/b": (VECTOR, 4 * o),
                   "hidden_to_hidden/w": (9 * o, 4 * o),
                   "hidden_to_hidden/b": (VECTOR, 4 * o)}, NOT_LAST)]
