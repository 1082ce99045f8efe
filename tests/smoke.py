"""Trial that `make wheel` runs in a new environment and an empty folder.

python smoke.py [EXTRA]: without an extra, an optimizer of the package trains;
with "[train]", `mulo train` meta-trains, and the result trains.
"""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax

import mulo


def train(name: str) -> None:
  """Train a small network; raise AssertionError unless the loss falls."""
  def init(width):
    return {"in": jax.random.normal(jax.random.key(0), (4, width)) / 2,
            "out": jnp.zeros((width, 1))}

  def loss(params):
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y = jax.nn.relu(x @ params["in"]) @ params["out"]
    return jnp.mean((y[:, 0] - x[:, 0])**2)

  tx = mulo.load(name, base_shapes=init(4), num_steps=100)
  params = init(32)
  state, first = tx.init(params), loss(params)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(100):
    params, state = step(params, state)
  last = loss(params)
  assert last < 0.1 * first, (first, last)
  print(f"{name}: loss {first:.3f}, after 100 steps {last:.4f}")


def main() -> None:
  """Try the installed package."""
  here = pathlib.Path.cwd()
  assert here not in pathlib.Path(mulo.__file__).parents, mulo.__file__
  program = str(pathlib.Path(sys.executable).parent / "mulo")
  subprocess.run([program, "list"], check=True)
  if sys.argv[1:] == ["[train]"]:
    subprocess.run(
        [program, "train", "quickstart", "--workdir=run",
         "--config.num_steps=30", "--config.copies=2"], check=True)
    train("run/theta.safetensors")
  else:
    train("mulo-s")


if __name__ == "__main__":
  main()
