"""Parts of other packages: by import, by entry point, and with errors."""

import sys

import jax
import numpy as np
import pytest
import tiny_config

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt import registry
from learned_opt.scaling import parametrizations
from meta_train import estimators
from meta_train import train
from meta_train.workdir import metrics
import mulo
from tasks import families

OPTIMIZER = '''
"""Gradient descent with a learned step size."""
import jax
import jax.numpy as jnp
import optax
from learned_opt import base

SCALE = 0.1


def make(scale: float = SCALE) -> base.LearnedOptimizer:
  def init(key):
    return {"log_step": jnp.float32(0)}

  def opt_fn(theta, *, num_steps=None):
    step = scale * jnp.exp(theta["log_step"])
    return optax.with_extra_args_support(optax.stateless(
        lambda grads, params: jax.tree.map(lambda g: -step * g, grads)))

  return base.LearnedOptimizer(init, opt_fn)
'''

PARAMETRIZATION = '''
"""mup, but all updates are divided by the number of rows."""
from learned_opt.scaling.parametrizations import mup


def make():
  return mup.make()._replace(
      update_mult=lambda shape, base_shape: 1 / shape[0])
'''

ESTIMATOR = '''
"""Truncated evolution strategies with a fixed noise."""
from meta_train.estimators import truncated_es


def make(task, opt_fn, *, truncation: int, shortest: int, longest: int):
  return truncated_es.make(
      task=task, opt_fn=opt_fn, std=0.01, truncation=truncation,
      shortest=shortest, longest=longest)
'''

FAMILY = '''
"""A linear network of one hidden layer that learns the identity."""
import jax
import jax.numpy as jnp
from tasks import base
from tasks import normalizers


def make(parametrization, width: int = 4) -> base.Task:
  def shapes(width):
    return {"first": jax.ShapeDtypeStruct((2, width), jnp.float32),
            "last": jax.ShapeDtypeStruct((width, 2), jnp.float32)}

  bases = shapes(width + 1)

  def init(key):
    return {name: parametrization.init_std(x.shape, bases[name].shape)
            * jax.random.normal(key, x.shape)
            for name, x in shapes(width).items()}

  def loss(params, key, batch):
    product = params["first"] @ params["last"] / width
    return jnp.mean((product - jnp.eye(2))**2), {}

  return base.Task(
      init, loss, sample_batch=lambda key, split: {},
      data={split: {} for split in base.SPLITS}, base_shapes=bases,
      normalize=normalizers.Normalizer())
'''

OTHERS = '''
"""A part with any settings, and two things that are no parts."""


def make(a=1, *more, b=2, **others):
  return {"a": a, "b": b, **others}


class Namespace:
  make = make
'''

FOLDERS = {"optimizer": "learned_opt.optimizers",
           "parametrization": "learned_opt.scaling.parametrizations",
           "estimator": "meta_train.estimators", "family": "tasks.families"}
NAMES = {kind: f"temp_parts.{kind}:make" for kind in FOLDERS}


def install(folder, distribution, points):
  """Write the metadata of an installed package; points are {group: lines}."""
  info = folder / f"{distribution}-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text(
      f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
  (info / "entry_points.txt").write_text("\n".join(
      f"[{group}]\n{lines}" for group, lines in points.items()))


@pytest.fixture
def site(tmp_path, monkeypatch):
  """Folder on sys.path with a package of one part of each kind."""
  folder = tmp_path / "site"
  package = folder / "temp_parts"
  package.mkdir(parents=True)
  for name, text in {"__init__": "", "optimizer": OPTIMIZER,
                     "parametrization": PARAMETRIZATION,
                     "estimator": ESTIMATOR, "family": FAMILY,
                     "others": OTHERS}.items():
    (package / f"{name}.py").write_text(text)
  monkeypatch.syspath_prepend(folder)
  yield folder
  for name in [x for x in sys.modules if x.partition(".")[0] == "temp_parts"]:
    del sys.modules[name]


def config_of(names):
  """Return a config of 3 outer steps with these parts."""
  config = tiny_config.get_config()
  config.unlock()
  config.num_steps = 3
  config.optimizer = {"name": names["optimizer"], "scale": 0.5}
  config.parametrization = names["parametrization"]
  config.estimator = {"name": names["estimator"], "truncation": 2,
                      "shortest": 2, "longest": 4}
  config.tasks = {"identity": {"name": names["family"], "width": 3}}
  return config.lock()


def shapes(width):
  return {"w": jax.ShapeDtypeStruct((4, width), np.float32)}


def test_meta_training_with_parts_of_another_package(site, tmp_path, capsys):
  """All four kinds; weights that name code are loaded with trust only."""
  workdir = str(tmp_path / "run")
  path = train.meta_train(config_of(NAMES), workdir)
  assert len(metrics.read(path.with_name("metrics.jsonl"))) == 3
  with pytest.raises(mulo.ArtifactError, match="would run that code"):
    mulo.load(path, base_shapes=shapes(2))
  with pytest.raises(mulo.ArtifactError) as e:
    mulo.load(path, base_shapes=shapes(2), trust=(NAMES["optimizer"],))
  assert f'trust=("{NAMES["parametrization"]}",)' in str(e.value)
  trust = NAMES["optimizer"], NAMES["parametrization"]
  artifact = mulo.read(path, trust=trust)
  assert (artifact.optimizer, artifact.parametrization) == trust
  assert artifact.settings == {"scale": 0.5}
  assert artifact.theta["log_step"] != 0
  tx = mulo.load(path, base_shapes=shapes(2), trust=trust)
  params = {"w": np.ones((4, 3), np.float32)}
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(  # 4 rows
      updates["w"], -0.5 / 4 * np.exp(artifact.theta["log_step"]) * params["w"],
      rtol=1e-6)
  # The run itself trusts the names in its config.
  train.meta_train(config_of(NAMES), workdir)
  assert "is finished" in capsys.readouterr().out


def test_entry_points(site, tmp_path):
  install(site, "temp-parts", {
      folder: f"mine = {NAMES[kind]}\n" for kind, folder in FOLDERS.items()})
  for kind, folder in FOLDERS.items():
    assert "mine" in registry.names(folder)
    assert registry.find(folder, "mine") is registry.find(folder, NAMES[kind])
  assert "mine" in optimizers.names() and "mine" in estimators.names()
  assert optimizers.all_settings("mine") == {"scale": 0.1}
  mup = parametrizations.get("mine")
  task = families.get("mine", mup, width=5)
  assert mup.update_mult((4, 3), (4, 2)) == 1 / 4
  estimators.get("mine", task=task, opt_fn=optimizers.get("mine").opt_fn,
                 truncation=2, shortest=2, longest=4)
  # Installed parts need no trust.
  path = tmp_path / "a.safetensors"
  mulo.save(path, artifact_lib.Artifact(
      "mine", {}, "mine", {"log_step": np.float32(0)}))
  params = {"w": np.ones((4, 3), np.float32)}
  tx = mulo.load(path, base_shapes=shapes(2))
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates["w"], -0.1 / 4, rtol=1e-6)
  with pytest.raises(ValueError, match="'nope'.*mine, .*or package.module"):
    registry.find(FOLDERS["optimizer"], "nope")


def test_names_that_several_packages_offer(site):
  folder = FOLDERS["optimizer"]
  install(site, "temp-parts", {folder: (
      "mine = temp_parts.optimizer:make\nmulo = temp_parts.optimizer:make\n"
      "extra = temp_parts.optimizer:make [more]\nwrong = temp_parts\n")})
  install(site, "others", {folder: (
      "mine = temp_parts.others:make\nextra = temp_parts.optimizer:make\n")})
  # A package cannot replace a file of this project.
  assert registry.find(folder, "mulo").__module__ == f"{folder}.mulo"
  assert registry.find(folder, "extra").__module__ == "temp_parts.optimizer"
  with pytest.raises(ValueError, match="'mine'.*optimizer:make, .*others:make"):
    registry.find(folder, "mine")
  with pytest.raises(ValueError, match="'temp_parts' is not of the form"):
    registry.find(folder, "wrong")


@pytest.mark.parametrize("folder", FOLDERS.values())
@pytest.mark.parametrize("name, message", [
    ("not_installed:make", "cannot be imported: No module named"),
    ("temp_parts.nothing:make", "cannot be imported: No module named"),
    ("temp_parts.optimizer:nothing", "has no attribute 'nothing'"),
    ("temp_parts.optimizer:SCALE", "is 0.1, not a function"),
    ("temp_parts.optimizer:", "is not of the form package.module:make"),
    (".optimizer:make", "is not of the form package.module:make"),
    ("temp_parts.optimizer: make", "is not of the form package.module:make"),
    ("temp_parts.optimizer", "Unknown name .* or package.module:make"),
    ("_private", "Unknown name '_private'"),
    ("__init__", "Unknown name '__init__'")])
def test_names_of_no_part(site, folder, name, message):
  with pytest.raises(ValueError, match=message):
    registry.get(folder, name)


def test_settings(site):
  folder = FOLDERS["optimizer"]
  for call in (registry.get, registry.all_settings):
    with pytest.raises(ValueError, match=(
        "optimizer:make does not take the settings 'scal'; its settings are "
        r"scale\. Did you mean 'scale'\?")):
      call(folder, NAMES["optimizer"], scal=1.0)
  with pytest.raises(ValueError, match=r"\[\]: missing a required.*'task'"):
    registry.get(FOLDERS["estimator"], NAMES["estimator"])
  with pytest.raises(ValueError, match="does not take the settings"):
    families.get(NAMES["family"], parametrizations.get("mup"), depth=2)
  others = "temp_parts.others:Namespace.make"
  assert registry.all_settings(folder, others, b=3, c=4) == {
      "a": 1, "b": 3, "c": 4}
  assert registry.get(folder, others, c=4) == {"a": 1, "b": 2, "c": 4}


@pytest.mark.parametrize("kind", FOLDERS)
def test_configs_with_unknown_parts(site, tmp_path, kind):
  config = config_of(NAMES | {kind: "temp_parts.nothing:make"})
  with pytest.raises(ValueError, match="temp_parts.nothing:make.*imported"):
    train.meta_train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_files_are_listed_and_folders_are_not(monkeypatch, tmp_path):
  assert "pes" in registry.names(FOLDERS["estimator"])
  assert "shared" not in registry.names(FOLDERS["estimator"])
  for name in ("new_part", "_private"):
    (tmp_path / f"{name}.py").write_text("x = 3")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "__init__.py").write_text("")
  before = optimizers.names()
  monkeypatch.setattr(optimizers, "__path__",
                      [*optimizers.__path__, str(tmp_path)])
  assert set(optimizers.names()) - set(before) == {"new_part"}
  with pytest.raises(ValueError, match="new_part' has no attribute 'make'"):
    optimizers.get("new_part")
