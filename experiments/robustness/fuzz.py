"""Fuzz test: read damaged and hostile weight files.

python -m experiments.robustness.fuzz [--first=0] [--count=10000]

Case number i is made from the seed i: a file or a set of arrays in one of the
layouts, changed at random, either its bytes or its structure. Some changed
files get hashes that fit the change; some files name code to import, such as
"os:system".

Each case is read as a user would read the file, in a process with limited
memory. Another process waits for each case for a limited time. A case passes if
it is refused by mulo.ArtifactError with a short message, or if it is read and
the result is what another reader finds in the file (second_reader.py); and if
it has no other effect: no file written, no program or connection started, no
pickle, no import of named code.

10,000 cases take about half a minute. The exit status is 1 if any case fails,
or if the process that reads needs more memory than PEAK; --first=SEED --count=1
repeats one case. After an interruption the command lists the failures so far
and the flags to continue.
"""

import collections
import functools
import json
import pathlib
import resource
import sys
import time
from typing import Any, Callable

from absl import flags
import jax
import msgpack
import numpy as np
from safetensors import numpy as safetensors_numpy

from experiments import command
from experiments.robustness import isolation
from experiments.robustness import second_reader
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo
from mulo import _published_layouts as published_layouts

PEAK = 2**29  # bytes of memory that reading may take, programs included
TRAP = "experiments.robustness.trap"  # reports when it is imported
# Names of code, well-formed and not. A file must not make any of them run.
CODE = (
    f"{TRAP}:make", f"{TRAP}:make.__call__", f" {TRAP}:make", f"{TRAP} : make",
    f"{TRAP}:make:make", f"{TRAP}:", f":{TRAP}", TRAP, "trap", ".trap:make",
    "..robustness.trap:make", "os:system", "os:path.join", "subprocess:run",
    "builtins:exec", "learned_opt.optimizers.adafac_mlp:make",
    "learned_opt.scaling.parametrizations.mup:make", ":", "a:b:c",
    "../trap.py:make", "\x1b[2J:make", "a." * 3000 + "a:make")
# Values that no reader expects. Their order belongs to the seeds of cases.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3.5, 2**31, 2**63, 10**40, float("nan"),
    float("inf"), "", "x" * 5000, "../../etc/passwd", "\x1b[2J", "\ud800", [],
    [[]] * 50, {}, {"a": {"b": [1]}}, "mulo", "adafac_mlp", "__init__",
    "standard", "mup", "os")


@functools.cache
def sample() -> dict[str, np.ndarray]:
  """Return a small theta as {path: array}; callers must not change it."""
  theta = optimizers.get("adafac_mlp", hidden=3).init(jax.random.key(0))
  return {k: np.array(x) for k, x in artifact_lib.flatten(theta).items()}


@functools.cache
def published(layout: str) -> tuple[dict[str, np.ndarray], dict]:
  """Return small arrays in a published layout, and arguments of `convert`."""
  entry = published_layouts.LAYOUTS[layout]
  lopt = optimizers.get(entry.optimizer, **{name: 3 for name in entry.sizes})
  theta = jax.eval_shape(lopt.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda shape: np.asarray(rng.standard_normal(shape), np.float32)
  return ({name: draw(shape)
           for name, shape in published_layouts.shapes(entry, theta).items()},
          {name: draw(theta[name].shape) for name in entry.arguments} |
          dict.fromkeys(entry.switches, False))


def artifact_bytes(flat, **changes) -> bytes:
  """Return an artifact of adafac_mlp whose hashes fit its content.

  Args:
    flat: {path: array}.
    **changes: fields of the header to change.
  """
  header = {
      "format_version": artifact_lib.FORMAT_VERSION, "optimizer": "adafac_mlp",
      "settings": {"hidden": 3},
      "parametrization": "standard", "licence": "unknown",
      "record": {"horizon": [10, 100], "tasks": {"a": {"width": 8}}},
      "sha256": artifact_lib.sha256(flat), **changes}
  header["header_sha256"] = artifact_lib.header_sha256(header)
  return safetensors_numpy.save(flat, {"mulo": json.dumps(header)})


def flax_bytes(tree) -> bytes:
  """Return a tree in the format of flax.serialization."""
  def default(x):
    parts = [list(x.shape), str(x.dtype), x.tobytes()]
    return msgpack.ExtType(1, msgpack.packb(parts))

  return msgpack.packb(tree, default=default)


def odd(rng) -> Any:
  """Return a value that no reader expects."""
  return ODD[rng.integers(len(ODD))]


def damaged(rng, content: bytes) -> bytes:
  """Flip, overwrite, delete, insert, repeat or cut off some of the bytes."""
  x = bytearray(content)
  if rng.random() < 0.3:  # the smallest damage is the hardest to notice
    x[rng.integers(len(x))] ^= 1 << int(rng.integers(8))
    return bytes(x)
  for _ in range(rng.integers(1, 6)):
    at = int(rng.integers(max(1, len(x))))
    # Half of the changes hit the beginning, which decides how to read the rest.
    at = at if rng.random() < 0.5 else at % 64
    junk = bytes(rng.choice([0, 1, 0x7f, 0x80, 0xc1, 0xdd, 0xdf, 0xff], 8)
                 .astype(np.uint8))[:rng.integers(1, 9)]
    kind = rng.integers(6)
    if kind == 0 and at < len(x):
      x[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      x[at:at + len(junk)] = junk
    elif kind == 2:
      del x[at:at + int(rng.integers(1, 200))]
    elif kind == 3:
      x[at:at] = junk * int(rng.integers(1, 100))
    elif kind == 4:
      x += x[at:at + 500]
    else:
      del x[max(at, 1):]
  return bytes(x)


def odd_array(rng, x: np.ndarray) -> np.ndarray:
  """Change the numbers, the shape or the dtype of an array."""
  x = np.asarray(x)
  kinds: list[Callable] = [
      lambda: np.full_like(x, rng.choice([np.nan, np.inf, 1e38, 0])),
      lambda: x.astype(rng.choice(
          ["float64", "float16", "int8", "uint32", "bool"])),
      lambda: x.reshape(-1), lambda: x[None], lambda: x[..., :0],
      lambda: np.zeros((1,) * int(rng.integers(1, 20)), np.float32),
      lambda: np.zeros(int(rng.integers(1, 100000)), np.float32)]
  with np.errstate(all="ignore"):  # NaN as an integer
    return kinds[rng.integers(len(kinds))]()


def odd_arrays(rng, flat: dict) -> dict:
  """Change, add or remove some of the arrays in a dict."""
  flat = dict(flat)
  for _ in range(rng.integers(0, 3)):
    name = list(flat)[rng.integers(len(flat))] if flat else "w0"
    kind = rng.integers(4)
    if kind == 0:
      flat.pop(name, None)
    elif kind == 1:
      flat["/".join(["..", name] * int(rng.integers(1, 50)))] = np.ones(2)
    elif name in flat:
      flat[name] = odd_array(rng, flat[name])
  return flat


def nested(rng, depth: int = 0) -> Any:
  """Return a random msgpack value; some are deep, some announce large arrays.

  msgpack.ExtType(1, ...) is the code of flax.serialization for an array.
  """
  kind = rng.integers(8)
  if kind == 0 and depth < 6:
    return {str(rng.integers(9)): nested(rng, depth + 1)
            for _ in range(rng.integers(5))}
  if kind == 1 and depth < 6:
    return [nested(rng, depth + 1) for _ in range(rng.integers(5))]
  if kind == 2:
    shape = [[2**62, 0], [-1], [3], [2**20] * 4, "x", None][rng.integers(6)]
    dtype = ["float32", "object", "V8", "O", "bfloat16", "U9"][rng.integers(6)]
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, b"\0" * 12]))
  if kind == 3:
    return msgpack.ExtType(int(rng.integers(128)), bytes(rng.bytes(20)))
  if kind == 4:
    return rng.bytes(int(rng.integers(100)))
  if kind == 5:
    return np.ones(2, np.float32)
  return int(rng.integers(2**62))


def announced(rng) -> bytes:
  """Return msgpack or safetensors bytes that announce more than they hold.

  In msgpack, 0xdd and 0xdf announce up to 2**32 entries of a list or a dict;
  0x91 and 0x81 open a list or a dict with one entry. A safetensors file begins
  with the length of its header in 8 bytes.
  """
  n = int(rng.integers(1, 60000))
  kinds: list[Callable[[], bytes]] = [
      lambda: b"\xdd\xff\xff\xff\xff" * n,
      lambda: b"\xdf\xff\xff\xff\xff" * n, lambda: b"\x91" * n,
      lambda: b"\x81\xa1a" * n, lambda: b"\xdc\x00\x10" + b"\x80" * n,
      lambda: b"\xc9\xff\xff\xff\xff\x01" * 9,
      lambda: (2**62).to_bytes(8, "little") + b"{",
      lambda: n.to_bytes(8, "little") + b"[" * n,
      lambda: (n + 1).to_bytes(8, "little") + b"{" + b"\"" * n,
      lambda: ((6 * n + 6).to_bytes(8, "little") + b'{"a":' * n +
               b" " * (n + 6)),
      lambda: b"".join(
          [b"\x81\xda\x0f\xff" + b"k" * 4095] * (n % 500) +
          [b"\xde\x40\x00"] +
          [b"\xa5" + str(10000 + i).encode() + b"\x80" for i in range(2**14)])]
  return kinds[rng.integers(len(kinds))]()


def code_case(names: dict[str, str], folder: pathlib.Path
              ) -> Callable[[], Any]:
  """Write an artifact that names code.

  Args:
    names: {"optimizer" or "parametrization": name of the code}.
    folder: where the file is written.

  Returns:
    A function that reads the file; raises RuntimeError if it can be read.
  """
  path = folder / "theta.safetensors"
  path.write_bytes(artifact_bytes(sample(), **names))

  def attempt():
    sys.modules.pop(TRAP, None)  # so that a second import is reported, too
    mulo.read(path)
    raise RuntimeError(f"A file with {names} was read.")

  return attempt


def artifact_case(rng, folder: pathlib.Path) -> Callable[[], Any]:
  """Write a changed artifact; return a function that reads it."""
  flat = sample()
  kind = rng.integers(6)
  whole = b""  # what is read must be this; b"": what the file says
  if kind < 3:  # damaged bytes
    whole = artifact_bytes(flat)
    content = damaged(rng, whole)
  elif kind == 3:  # other arrays, with hashes that fit
    content = artifact_bytes(odd_arrays(rng, flat))
  elif kind == 4:  # an odd field of the header
    field = list(artifact_lib.FIELDS)[rng.integers(7)]
    content = artifact_bytes(flat, **{field: odd(rng)})
  else:  # an odd setting
    field = ["hidden", "step_mult", "exp_mult", "accumulator_dtype", "lowering",
             "__class__"][rng.integers(6)]
    content = artifact_bytes(flat, settings={"hidden": 3, field: odd(rng)})
  path = folder / "theta.safetensors"
  path.write_bytes(content)

  def attempt():
    artifact = mulo.read(path)
    second_reader.check_artifact(whole or content, artifact)
    return artifact.trained

  return attempt


def file_case(rng, folder: pathlib.Path) -> Callable[[], Any]:
  """Write a file of another project; return a function that reads it."""
  path = folder / "theta.state"
  content = [lambda: flax_bytes(nested(rng)), lambda: announced(rng)
             ][rng.integers(2)]()
  path.write_bytes(content)
  return lambda: second_reader.check_arrays(content, mulo.read_arrays(path))


def layout_file_case(rng, folder: pathlib.Path) -> Callable[[], Any]:
  """Write a changed file in a published layout; return a function for it.

  The function reads the file and converts the arrays.
  """
  layout, arrays, settings = chosen_layout(rng)
  if rng.random() < 0.5:
    arrays = odd_arrays(rng, arrays)
  if rng.random() < 0.5:
    content = safetensors_numpy.save(arrays)
  else:
    tree: dict[str, Any] = {}
    for name, x in arrays.items():
      parent, _, last = name.rpartition("/")
      (tree.setdefault(parent, {}) if parent else tree)[last] = x
    content = flax_bytes({"params": tree, "step": 3})
  if rng.random() < 0.8:
    content = damaged(rng, content)
  path = folder / "theta.state"
  path.write_bytes(content)

  def attempt():
    read = mulo.read_arrays(path)
    second_reader.check_arrays(content, read)
    second_reader.check_converted(
        read, settings, mulo.convert(read, layout, **settings))

  return attempt


def chosen_layout(rng) -> tuple[str, dict, dict]:
  """Return a layout, its arrays, and the arguments of `convert`."""
  layouts = list(published_layouts.LAYOUTS)
  layout = layouts[rng.integers(len(layouts))]
  return (layout, *map(dict, published(layout)))


def arrays_case(rng, folder: pathlib.Path) -> Callable[[], Any]:
  """Return a function that converts changed arrays of other projects."""
  del folder
  layout: Any
  layout, arrays, settings = chosen_layout(rng)
  arrays = odd_arrays(rng, arrays)
  if published_layouts.LAYOUTS[layout].arguments:
    settings = odd_arrays(rng, settings)
  if rng.random() < 0.3 and arrays:
    arrays[list(arrays)[0]] = odd(rng)
  if rng.random() < 0.5:
    settings[["hidden", "step_mult", "nothing"][rng.integers(3)]] = odd(rng)
  layout = layout if rng.random() < 0.9 else odd(rng)
  return lambda: second_reader.check_converted(
      arrays, settings, mulo.convert(arrays, layout, **settings))


def case(seed: int, folder: pathlib.Path) -> Callable[[], Any]:
  """Make the case of a seed.

  Args:
    seed: number of the case.
    folder: where the file is written.

  Returns:
    A function that reads the file or the arrays as a user would, and raises
    second_reader.Different if the result is not what they say.
  """
  # Random numbers of their own, so that the other cases keep their seeds.
  rng = np.random.default_rng((seed, 1))
  if rng.random() < 1 / 16:
    fields = [("optimizer",), ("parametrization",),
              ("optimizer", "parametrization")][rng.integers(3)]
    return code_case(
        {field: CODE[rng.integers(len(CODE))] for field in fields}, folder)
  rng = np.random.default_rng(seed)
  makers = 3 * [artifact_case] + [file_case, arrays_case] + 5 * [
      layout_file_case]
  return makers[rng.integers(len(makers))](rng, folder)


def define_flags() -> None:
  """Define the flags."""
  flags.DEFINE_integer("first", 0, "Seed of the first case.", lower_bound=0)
  flags.DEFINE_integer("count", 10000, "Number of cases.", lower_bound=1)


def main(args: flags.FlagValues) -> int:
  """Print the numbers of outcomes, and all failures to stderr.

  Returns:
    1 if a case failed or the command was interrupted, otherwise 0.
  """
  began = time.monotonic()
  outcomes = isolation.run(case, args.first, args.count)
  seconds = time.monotonic() - began
  failures = {seed: outcome for seed, outcome in outcomes.items()
              if outcome not in ("read", "refused")}
  counts = collections.Counter(
      "failed" if seed in failures else outcome
      for seed, outcome in outcomes.items())
  # In KiB, of the largest of the processes that read.
  peak = 2**10 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  print(", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) +
        f"; {len(outcomes) / seconds:.0f} a second, peak memory "
        f"{peak / 2**20:.0f} MB")
  lines = [f"--first={seed}: {message}" for seed, message in failures.items()]
  if peak > PEAK:
    lines.append(f"Reading took more than {PEAK / 2**20:.0f} MB of memory.")
  left = args.count - len(outcomes)
  if left:
    lines.append("Interrupted; go on with "
                 f"--first={args.first + len(outcomes)} --count={left}.")
  if lines:
    print("\n".join(lines), file=sys.stderr)
  return 1 if lines else 0


if __name__ == "__main__":
  command.run(define_flags, main)
