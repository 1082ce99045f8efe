"""Damaged and hostile weight files, and what reading makes of them.

python -m experiments.robustness.fuzz [--first=0] [--count=10000]

Case number i is made from the seed i: a whole file or a set of arrays, changed
at random, by bytes or by its structure, with hashes made to fit again in some.
It is read as a user would read it, in a process that has a bound on its memory;
another process waits for each case so long and no longer. A case passes if it
is read or refused by mulo.ArtifactError with a short message, and has done
nothing else: no file written, no program or connection begun, no pickle.

A minute of computing for 10,000 cases. Exits with status 1 if any case fails;
--first=SEED --count=1 repeats one. What was interrupted says what has failed so
far, and how to go on.
"""

import collections
import functools
import json
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import traceback
from typing import Any, Callable

from absl import app
from absl import flags
import jax
import msgpack
import numpy as np
from safetensors import numpy as safetensors_numpy
import tqdm

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo
from mulo import _published_layouts as published_layouts

SECONDS = 30.0  # for a case; a usual one takes some milliseconds
START_SECONDS = 300.0  # for a process to begin
MEMORY = 2**31  # bytes that a process may have beyond those it starts with
EFFECTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
           "os.rename", "os.mkdir", "subprocess.Popen", "socket.connect",
           "pickle.find_class", "shutil.", "ctypes.dlopen", "urllib.")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3.5, 2**31, 2**63, 10**40, float("nan"),
    float("inf"), "", "x" * 5000, "../../etc/passwd", "\x1b[2J", "\ud800", [],
    [[]] * 50, {}, {"a": {"b": [1]}}, "mulo", "adafac_mlp", "__init__",
    "standard", "mup", "os")


@functools.cache
def sample() -> dict[str, np.ndarray]:
  """A small theta; not to be changed."""
  theta = optimizers.get("adafac_mlp", hidden=3).init(jax.random.key(0))
  return {k: np.array(x) for k, x in artifact_lib.flatten(theta).items()}


@functools.cache
def published(layout: str) -> tuple[dict[str, np.ndarray], dict]:
  """Small arrays in a layout, and the arguments that they need."""
  rule = published_layouts.LAYOUTS[layout]
  lopt = optimizers.get(rule.optimizer, **{name: 3 for name in rule.sizes})
  theta = jax.eval_shape(lopt.init, jax.random.key(0))
  ones = lambda shape: np.ones(shape, np.float32)
  return ({name: ones(shape)
           for name, shape in published_layouts.shapes(rule, theta).items()},
          {name: ones(theta[name].shape) for name in rule.arguments})


def artifact_bytes(flat, **changes) -> bytes:
  """An artifact of adafac_mlp with hashes that fit whatever is in it."""
  header = {
      "format_version": artifact_lib.FORMAT_VERSION, "optimizer": "adafac_mlp",
      "settings": {"hidden": 3},
      "parametrization": "standard", "licence": "unknown",
      "record": {"horizon": [10, 100], "tasks": {"a": {"width": 8}}},
      "sha256": artifact_lib.sha256(flat), **changes}
  header["header_sha256"] = artifact_lib.header_sha256(header)
  return safetensors_numpy.save(flat, {"mulo": json.dumps(header)})


def flax_bytes(tree) -> bytes:
  """A tree as flax.serialization writes it."""
  def default(x):
    parts = [list(x.shape), str(x.dtype), x.tobytes()]
    return msgpack.ExtType(1, msgpack.packb(parts))

  return msgpack.packb(tree, default=default)


def odd(rng) -> Any:
  """A value that nobody expects."""
  return ODD[rng.integers(len(ODD))]


def damaged(rng, content: bytes) -> bytes:
  """Bytes flipped, overwritten, left out, put in, doubled or cut off."""
  x = bytearray(content)
  for _ in range(rng.integers(1, 6)):
    at = int(rng.integers(max(1, len(x))))
    # Most of what is decided is decided at the beginning.
    at = at if rng.random() < 0.5 else at % 64
    some = bytes(rng.choice([0, 1, 0x7f, 0x80, 0xc1, 0xdd, 0xdf, 0xff], 8)
                 .astype(np.uint8))[:rng.integers(1, 9)]
    kind = rng.integers(6)
    if kind == 0 and at < len(x):
      x[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      x[at:at + len(some)] = some
    elif kind == 2:
      del x[at:at + int(rng.integers(1, 200))]
    elif kind == 3:
      x[at:at] = some * int(rng.integers(1, 100))
    elif kind == 4:
      x += x[at:at + 500]
    else:
      del x[max(at, 1):]
  return bytes(x)


def odd_array(rng, x: np.ndarray) -> np.ndarray:
  """An array with other numbers, another shape or another dtype."""
  x = np.asarray(x)
  kinds: list[Callable] = [
      lambda: np.full_like(x, rng.choice([np.nan, np.inf, 1e38, 0])),
      lambda: x.astype(rng.choice(
          ["float64", "float16", "int8", "uint32", "bool"])),
      lambda: x.reshape(-1), lambda: x[None], lambda: x[..., :0],
      lambda: np.zeros((1,) * int(rng.integers(1, 20)), np.float32),
      lambda: np.zeros(int(rng.integers(1, 100000)), np.float32)]
  return kinds[rng.integers(len(kinds))]()


def odd_arrays(rng, flat: dict) -> dict:
  """A dict of arrays with some of them changed, renamed, added or missing."""
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
  """A random msgpack value; some are deep, or announce much."""
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
  """msgpack or safetensors that announces far more than there is."""
  n = int(rng.integers(1, 60000))
  return [
      b"\xdd\xff\xff\xff\xff" * n, b"\xdf\xff\xff\xff\xff" * n,
      b"\x91" * n, b"\x81\xa1a" * n, b"\xdc\x00\x10" + b"\x80" * n,
      b"\xc9\xff\xff\xff\xff\x01" * 9, (2**62).to_bytes(8, "little") + b"{",
      len(b"[" * n).to_bytes(8, "little") + b"[" * n,
      (n + 1).to_bytes(8, "little") + b"{" + b"\"" * n,
      (6 * n + 6).to_bytes(8, "little") + b'{"a":' * n + b" " * (n + 6),
      b"".join(b"\x81\xda\x0f\xff" + b"k" * 4095 for _ in range(n % 500)) +
      b"\xde\x40\x00" + b"".join(
          b"\xa5" + str(10000 + i).encode() + b"\x80" for i in range(2**14)),
      ][rng.integers(11)]


def case(seed: int, folder: pathlib.Path) -> Callable[[], Any]:
  """What is to be tried with this seed."""
  rng = np.random.default_rng(seed)
  flat = sample()
  theirs = {"nn": {"~": flat}}
  kind = rng.integers(8)
  if kind == 0:
    content = damaged(rng, artifact_bytes(flat))
  elif kind == 1:
    content = artifact_bytes(odd_arrays(rng, flat))
  elif kind == 2:
    field = list(artifact_lib.FIELDS)[rng.integers(7)]
    content = artifact_bytes(flat, **{field: odd(rng)})
  elif kind == 3:
    field = ["hidden", "step_mult", "exp_mult", "accumulator_dtype", "lowering",
             "__class__"][rng.integers(6)]
    content = artifact_bytes(flat, settings={"hidden": 3, field: odd(rng)})
  elif kind in (4, 5):
    content = [
        lambda: damaged(rng, flax_bytes({"params": theirs, "step": 3})),
        lambda: flax_bytes(nested(rng)), lambda: announced(rng),
        lambda: damaged(rng, safetensors_numpy.save(flat)),
        ][rng.integers(4)]()
    path = folder / "theta.state"
    path.write_bytes(content)
    return lambda: mulo.read_arrays(path)
  else:
    layout = list(published_layouts.LAYOUTS)[rng.integers(len(published_layouts.LAYOUTS))]
    arrays, arguments = published(layout)
    arrays = odd_arrays(rng, arrays)
    settings = odd_arrays(rng, arguments) if arguments else {}
    if rng.random() < 0.3 and arrays:
      arrays[list(arrays)[0]] = odd(rng)
    if rng.random() < 0.5:
      settings[["hidden", "step_mult", "nothing"][rng.integers(3)]] = odd(rng)
    layout = layout if rng.random() < 0.9 else odd(rng)
    return lambda: mulo.convert(arrays, layout, **settings)
  path = folder / "theta.safetensors"
  path.write_bytes(content)
  return lambda: mulo.read(path).trained


def outcome(attempt: Callable[[], Any], effects: list) -> str:
  """"read" or "refused", or what is wrong with what happened."""
  del effects[:]
  try:
    attempt()
    result = "read"
  except mulo.ArtifactError as e:
    result = "refused"
    if not 10 < len(str(e)) < 4000 or not str(e).isprintable():
      result = f"a message that is empty, long or not printable: {e!r:.300}"
  except BaseException:  # whatever else it is, it should not be
    result = traceback.format_exc()
  if effects:
    return f"it did {effects[:3]}"
  return result


def worker(connection, make_case: Callable, first: int, last: int) -> None:
  """Tries cases and tells what became of each; a process of its own."""
  effects: list[str] = []

  def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(
        args[1]) & set("wax+")
    if writes or event.startswith(EFFECTS):
      effects.append(f"{event} {args!r:.100}")

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for seed in range(8):  # what is imported and compiled at first use
      outcome(make_case(seed, folder), effects)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send((None, "ready"))
    sys.addaudithook(watch)
    for seed in range(first, last):
      found = outcome(make_case(seed, folder), effects)
      connection.send((seed, found))


def run(first: int, count: int, make_case: Callable = case,
        seconds: float = SECONDS) -> dict[int, str]:
  """Tries cases, in another process that is begun again if it ends.

  Args:
    first: seed of the first case.
    count: number of cases.
    make_case: `(seed, folder) -> attempt`, as `case`.
    seconds: for each.

  Returns:
    {seed: "read", "refused" or what is wrong}; after KeyboardInterrupt, of the
    first cases alone.
  """
  context = multiprocessing.get_context("spawn")
  found: dict[int, str] = {}
  last = first + count
  with tqdm.tqdm(total=count, unit="case", mininterval=1, leave=False) as bar:
    while len(found) < count:
      here, there = context.Pipe()
      seed = first + len(found)
      process = context.Process(
          target=worker, args=(there, make_case, seed, last), daemon=True)
      process.start()
      there.close()
      wait = START_SECONDS
      try:
        while len(found) < count:
          if not here.poll(wait):
            found[first + len(found)] = f"no end within {wait} s"
            break
          seed, message = here.recv()
          wait = seconds
          if seed is not None:
            found[seed] = message
            bar.update()
      except EOFError:
        process.join()
        found[first + len(found)] = (
            f"the process ended with status {process.exitcode}")
      except KeyboardInterrupt:
        break
      finally:
        process.kill()
        process.join()
  return found


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_integer("first", 0, "Seed of the first case.", lower_bound=0)
  flags.DEFINE_integer("count", 10000, "Number of cases.", lower_bound=1)


def main(argv):
  """Prints how many cases were read and refused, and all that failed."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  found = run(flags.FLAGS.first, flags.FLAGS.count)
  wrong = {seed: message for seed, message in found.items()
           if message not in ("read", "refused")}
  counts = collections.Counter(
      message if seed not in wrong else "failed"
      for seed, message in found.items())
  print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
  lines = [f"--first={seed}: {message}" for seed, message in wrong.items()]
  left = flags.FLAGS.count - len(found)
  if left:
    lines.append("Interrupted; go on with "
                 f"--first={flags.FLAGS.first + len(found)} --count={left}.")
  if lines:
    sys.exit("\n".join(lines))


if __name__ == "__main__":
  define_flags()
  app.run(main)
