"""Layers of flax linen and flax nnx, with the right answers."""

from mulo import scaling

from .kit import CONV_LOOK
from .kit import HEAD
from .kit import IMAGE
from .kit import LIN
from .kit import MIDDLE
from .kit import NNX
from .kit import NOT_LAST
from .kit import POSITIONS
from .kit import RANK
from .kit import ROLE_OF_GAIN
from .kit import ROWS
from .kit import TEXT
from .kit import VECTOR
from .kit import attention
from .kit import cell
from .kit import gates
from .kit import heads
from .kit import linen
from .kit import matrix
from .kit import nnx
from .kit import shape
from .kit import vectors

LINEN = [
    (LIN, "Dense", linen(lambda nn, i, o: nn.Dense(o)), matrix()),
    (LIN, "DenseGeneral to heads", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o))), matrix(), NOT_LAST),
    (LIN, "DenseGeneral to heads, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, MIDDLE),
    (LIN, "DenseGeneral to heads, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, ("first",),
     {"kernel": scaling.Override(inputs=(0,))}, "error"),
    (LIN, "DenseGeneral with a batch axis", linen(
        lambda nn, i, o: nn.DenseGeneral(o, batch_dims=(0,))), matrix()),
    (LIN, "DenseGeneral with a batch axis, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(o, batch_dims=(0,), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, NOT_LAST,
     {"kernel": scaling.Override(stack=(0,))}, CONV_LOOK),
    (LIN, "Einsum to heads first", linen(
        lambda nn, i, o: nn.Einsum(
            (o // HEAD, i, HEAD), "bta,hac->bthc"), TEXT), matrix(), NOT_LAST),
    *[(LIN, f"Conv, {n}-D", linen(
        lambda nn, i, o, n=n: nn.Conv(o, (3,) * n), (2, *(6,) * n, None)),
       matrix(places=3**n)) for n in (1, 2, 3)],
    (LIN, "Conv, without bias", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}),
    (LIN, "Conv, 1-D, without bias", linen(
        lambda nn, i, o: nn.Conv(o, (3,), use_bias=False), TEXT),
     lambda i, o: {"kernel": (3 * i, o)}, NOT_LAST),
    (LIN, "Conv, depthwise", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=i), IMAGE),
     lambda i, o: {"kernel": (9, o), "bias": (VECTOR, o)}, MIDDLE),
    (LIN, "Conv, 4 groups", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=4), IMAGE),
     lambda i, o: {"kernel": (9 * i // 4, o), "bias": (VECTOR, o)},
     ("middle", "last")),
    (LIN, "Conv, groups of 4", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=i // 4), IMAGE),
     lambda i, o: {"kernel": (36, o), "bias": (VECTOR, o)}, MIDDLE),
    (LIN, "ConvTranspose", linen(
        lambda nn, i, o: nn.ConvTranspose(o, (3, 3)), IMAGE), matrix(places=9)),
    (LIN, "ConvTranspose, transpose_kernel", linen(
        lambda nn, i, o: nn.ConvTranspose(o, (3, 3), transpose_kernel=True),
        IMAGE), matrix(places=9)),
    (LIN, "ConvTranspose, transpose_kernel, without bias", linen(
        lambda nn, i, o: nn.ConvTranspose(
            o, (3, 3), transpose_kernel=True, use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}, tuple(POSITIONS),
     {"kernel": scaling.Override(outputs=(2,))}, CONV_LOOK),
    (LIN, "ConvLocal", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3, 3)), IMAGE), matrix(places=9)),
    (LIN, "ConvLocal, 1-D", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3,)), TEXT), matrix(places=3)),
    (LIN, "ConvLocal, without bias", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3, 3), use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}, tuple(POSITIONS),
     {"kernel": scaling.Override(stack=(0, 1))}, CONV_LOOK),
    (LIN, "Dense, stacked by vmap", linen(
        lambda nn, i, o: nn.vmap(
            nn.Dense, {"params": 0}, {"params": True}, in_axes=None,
            axis_size=5)(o)), matrix()),
    (LIN, "DenseGeneral to heads, stacked by vmap", linen(
        lambda nn, i, o: nn.vmap(
            nn.DenseGeneral, {"params": 0}, {"params": True}, in_axes=None,
            axis_size=5)(heads(i, o))), matrix(), NOT_LAST),
    (LIN, "Embed", lambda i, o: {"embedding": shape(ROWS, o)},
     lambda i, o: {"embedding": (ROWS, o)}, ("first",)),
    *[(LIN, name, linen(lambda nn, i, o, name=name: getattr(nn, name)(), IMAGE),
       vectors("scale", "bias")) for name in ("LayerNorm", "InstanceNorm")],
    (LIN, "RMSNorm", linen(lambda nn, i, o: nn.RMSNorm()), vectors("scale")),
    (LIN, "GroupNorm", linen(
        lambda nn, i, o: nn.GroupNorm(None, 1), IMAGE),
     vectors("scale", "bias")),
    (LIN, "BatchNorm", linen(lambda nn, i, o: nn.BatchNorm(False), IMAGE),
     vectors("scale", "bias")),
    (LIN, "LayerNorm over heads and their entries",
     lambda i, o: {x: shape(*heads(i, o)) for x in ("scale", "bias")},
     lambda i, o: {x: (VECTOR, o, "vector") for x in ("scale", "bias")},
     MIDDLE, ROLE_OF_GAIN, "error"),
    (LIN, "RMSNorm over heads and their entries, beside queries",
     lambda i, o: {"norm": {"scale": shape(*heads(i, o))},
                   "query": {"kernel": shape(i, *heads(i, o))}},
     lambda i, o: {"norm/scale": (VECTOR, o, "vector"),
                   "query/kernel": (i, o)},
     MIDDLE, {"norm/scale": "vector"}, "error"),
    (LIN, "WeightNorm of Dense", linen(
        lambda nn, i, o: nn.WeightNorm(nn.Dense(o))),
     lambda i, o: {"layer_instance/kernel": (i, o),
                   "layer_instance/bias": (VECTOR, o),
                   "layer_instance/kernel/scale": (VECTOR, o)}),
    (LIN, "SpectralNorm of Conv",
     lambda i, o: {"layer_instance": linen(
         lambda nn, i, o: nn.Conv(o, (3, 3)), IMAGE)(i, o)},
     matrix("layer_instance/kernel", "layer_instance/bias", 9)),
    (LIN, "MultiHeadDotProductAttention", linen(
        lambda nn, i, o: nn.MultiHeadDotProductAttention(
            o // HEAD, qkv_features=o, out_features=o), TEXT),
     lambda i, o: attention(i, o) | {
         f"{x}/kernel": (i, o) for x in ("query", "key", "value")}, NOT_LAST),
    (LIN, "MultiHeadDotProductAttention, normalize_qk, without biases", linen(
        lambda nn, i, o: nn.MultiHeadDotProductAttention(
            i // HEAD, use_bias=False, normalize_qk=True), TEXT),
     lambda i, o: attention(o, i, "") | {
         f"{x}_ln/scale": (VECTOR, HEAD) for x in ("query", "key")}, MIDDLE),
    (LIN, "PReLU", linen(lambda nn, i, o: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    *[(LIN, name, cell(lambda nn, o, name=name: getattr(nn, name)(o)),
       gates(["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"],
             ["hi", "hf", "hg", "ho"]), NOT_LAST)
      for name in ("LSTMCell", "OptimizedLSTMCell")],
    (LIN, "GRUCell", cell(lambda nn, o: nn.GRUCell(o)),
     gates(["ir", "iz", "in"], ["hr", "hz", "hn"], ["ir", "iz", "in", "hn"]),
     NOT_LAST),
    (LIN, "MGUCell", cell(lambda nn, o: nn.MGUCell(o)),
     gates(["if", "in"], ["hf", "hn"], ["if", "in", "hn"]), NOT_LAST),
    (LIN, "SimpleCell", cell(lambda nn, o: nn.SimpleCell(o)),
     gates(["i"], ["h"], ["i"]), NOT_LAST),
    (LIN, "ConvLSTMCell", cell(lambda nn, o: nn.ConvLSTMCell(o, (3, 3)), 8, 8),
     lambda i, o: {"ih/kernel": (9 * i, 4 * o), "ih/bias": (VECTOR, 4 * o),
                   "hh/kernel": (9 * o, 4 * o), "hh/bias": (VECTOR, 4 * o)},
     NOT_LAST)]

NNX_LAYERS = [
    (NNX, "Linear", nnx(lambda nn, i, o, r: nn.Linear(i, o, rngs=r)), matrix()),
    (NNX, "LinearGeneral to heads", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(i, heads(i, o), rngs=r)), matrix(),
     NOT_LAST),
    (NNX, "LinearGeneral to heads with a batch axis", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(
            i, heads(i, o), batch_axis={0: 5}, rngs=r)), matrix(), NOT_LAST),
    (NNX, "LinearGeneral from heads, without bias", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(
            heads(o, i), o, axis=(-2, -1), use_bias=False, rngs=r)),
     lambda i, o: {"kernel": (i, o)}, ("middle", "last")),
    (NNX, "Einsum to heads first, its bias with an axis of 1", nnx(
        lambda nn, i, o, r: nn.Einsum(
            "nta,hac->nhtc", (o // HEAD, i, HEAD), (o // HEAD, 1, HEAD),
            rngs=r)), matrix(), NOT_LAST),
    (NNX, "Einsum to heads first and from heads, without biases", nnx(
        lambda nn, i, o, r: nn.Dict(
            q=nn.Einsum("bta,hac->bthc", (i // HEAD, i, HEAD), rngs=r),
            out=nn.Einsum("bthc,hca->bta", (i // HEAD, HEAD, i), rngs=r))),
     lambda i, o: {"q/kernel": (i, i), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "Einsum, keys of 2 heads and the outputs of heads, without biases",
     nnx(lambda nn, i, o, r: nn.Dict(
         k=nn.Einsum("bta,hac->bthc", (2, i, HEAD), rngs=r),
         out=nn.Einsum("bthc,hca->bta", (i // HEAD, HEAD, i), rngs=r))),
     lambda i, o: {"k/kernel": (i, 2 * HEAD), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "LinearGeneral, keys of 2 heads and the outputs of heads, without "
     "biases", nnx(lambda nn, i, o, r: nn.Dict(
         k=nn.LinearGeneral(i, (2, HEAD), use_bias=False, rngs=r),
         out=nn.LinearGeneral((i // HEAD, HEAD), i, axis=(-2, -1),
                              use_bias=False, rngs=r))),
     lambda i, o: {"k/kernel": (i, 2 * HEAD), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "Conv", nnx(
        lambda nn, i, o, r: nn.Conv(i, o, (3, 3), rngs=r)), matrix(places=9)),
    (NNX, "Conv, depthwise, 1-D, without bias", nnx(
        lambda nn, i, o, r: nn.Conv(
            i, o, (5,), feature_group_count=i, use_bias=False, rngs=r)),
     lambda i, o: {"kernel": (5, o)}, MIDDLE),
    (NNX, "ConvTranspose", nnx(
        lambda nn, i, o, r: nn.ConvTranspose(i, o, (3, 3), rngs=r)),
     matrix(places=9)),
    (NNX, "ConvTranspose, 1-D, transpose_kernel", nnx(
        lambda nn, i, o, r: nn.ConvTranspose(
            i, o, (5,), transpose_kernel=True, rngs=r)), matrix(places=5)),
    (NNX, "Embed", nnx(lambda nn, i, o, r: nn.Embed(ROWS, o, rngs=r)),
     lambda i, o: {"embedding": (ROWS, o)}, ("first",)),
    *[(NNX, name, nnx(lambda nn, i, o, r, name=name: getattr(nn, name)(
        i, rngs=r)), vectors("scale", "bias"))
      for name in ("LayerNorm", "BatchNorm", "InstanceNorm")],
    (NNX, "GroupNorm", nnx(
        lambda nn, i, o, r: nn.GroupNorm(i, None, group_size=1, rngs=r)),
     vectors("scale", "bias")),
    (NNX, "RMSNorm", nnx(lambda nn, i, o, r: nn.RMSNorm(i, rngs=r)),
     vectors("scale")),
    (NNX, "WeightNorm of Linear", nnx(
        lambda nn, i, o, r: nn.WeightNorm(nn.Linear(i, o, rngs=r), rngs=r)),
     matrix("layer_instance/kernel", "layer_instance/bias")),
    (NNX, "SpectralNorm of Linear", nnx(
        lambda nn, i, o, r: nn.SpectralNorm(nn.Linear(i, o, rngs=r), rngs=r)),
     matrix("layer_instance/kernel", "layer_instance/bias")),
    (NNX, "MultiHeadAttention", nnx(
        lambda nn, i, o, r: nn.MultiHeadAttention(
            i // HEAD, i, normalize_qk=True, rngs=r)),
     lambda i, o: attention(o, i) | {
         f"{x}_ln/scale": (VECTOR, HEAD) for x in ("query", "key")}, MIDDLE),
    (NNX, "MultiHeadAttention, keys of fixed size", nnx(
        lambda nn, i, o, r: nn.MultiHeadAttention(
            i // HEAD, i, in_kv_features=6, rngs=r)),
     lambda i, o: attention(o, i) | {
         f"{x}/kernel": (6, i) for x in ("key", "value")}, MIDDLE),
    (NNX, "PReLU", nnx(lambda nn, i, o, r: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    (NNX, "LSTMCell", nnx(lambda nn, i, o, r: nn.LSTMCell(i, o, rngs=r)),
     gates(["ii", "if_", "ig", "io"], ["hi", "hf", "hg", "ho"],
           ["hi", "hf", "hg", "ho"]), NOT_LAST),
    (NNX, "OptimizedLSTMCell", nnx(
        lambda nn, i, o, r: nn.OptimizedLSTMCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_h"], 4), NOT_LAST),
    (NNX, "GRUCell", nnx(lambda nn, i, o, r: nn.GRUCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_i"], 3), NOT_LAST),
    (NNX, "SimpleCell", nnx(lambda nn, i, o, r: nn.SimpleCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_i"]), NOT_LAST),
    (NNX, "LoRA", nnx(lambda nn, i, o, r: nn.LoRA(i, RANK, o, rngs=r)),
     lambda i, o: {"lora_a": (i, RANK), "lora_b": (RANK, o)}),
    (NNX, "LoRALinear", nnx(
        lambda nn, i, o, r: nn.LoRALinear(i, o, lora_rank=RANK, rngs=r)),
     lambda i, o: matrix()(i, o) | {
         "lora/lora_a": (i, RANK), "lora/lora_b": (RANK, o)})]
