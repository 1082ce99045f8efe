"""Puts a meta-trained optimizer into mulo/pretrained, with its card.

python -m experiments.release --run=runs/mulo_s --name=mulo-s \
    --studies=runs/width,runs/depth --label=mulo-s --repeats=other.safetensors

`run` is a finished workdir of meta_train.train, `studies` are workdirs of
experiments.studies.transfer. The card says how theta was found and, with intervals,
how it did in each study beside the baselines; its failures are whatever ended
worse than a tuned AdamW. `repeats` is what another run of the recipe made: if
that is the same theta, the card says so. Both files are written, or none.
"""

import hashlib
import json
import pathlib
import sys

from absl import app
from absl import flags
import numpy as np
import pandas as pd

from experiments import baselines
from experiments import report
from learned_opt import artifact as artifact_lib
from meta_train.workdir import metrics
import mulo

FOLDER = pathlib.Path(mulo.__file__).parent / "pretrained"
SCORES = {"mean_train_loss": "mean train loss",
          "final_train_loss": "final train loss",
          "outer_valid_loss": "validation loss", "test_loss": "test loss"}


def hours(run: pathlib.Path) -> float:
  """Time that a run took, compilation and evaluation included."""
  rows = metrics.read(run / "metrics.jsonl")
  return sum(row.get("seconds", 0.0) for row in rows) / 3600


def failures(results: pd.DataFrame, label: str) -> list[str]:
  """Where the optimizer diverged, or was worse than AdamW on average."""
  found = []
  for target, group in results.groupby("target", sort=False):
    own = group[group["method"] == label]
    diverged = (~np.isfinite(own["final_train_loss"])).sum()
    if diverged:
      found.append(f"{target}: {diverged} of {len(own)} runs diverged")
    adamw = group[group["method"] == report.REFERENCE]
    worse = [f"{name} {own[score].mean():.4g} against {adamw[score].mean():.4g}"
             for score, name in SCORES.items()
             if len(adamw) and own[score].mean() > adamw[score].mean()]
    if worse:
      found.append(f"{target}: {', '.join(worse)}")
  return found


def study(folder: pathlib.Path, label: str) -> str:
  """The part of the card on one study.

  Raises:
    ValueError: the optimizer is not in it.
  """
  results = pd.read_csv(folder / "results.csv")
  if label not in set(results["method"]):
    raise ValueError(f"{folder} has no optimizer {label!r}; it has "
                     f"{', '.join(results['method'].unique())}.")
  ours = {label, *(x.label for x in baselines.BASELINES.values())}
  results = results[results["method"].isin(ours)]
  lines = "".join(f"- {line}\n" for line in failures(results, label))
  return (f"### {folder.name}\n\n```sh\n"
          f"{(folder / 'command.txt').read_text()}```\n\n"
          f"{report.table(results)}\n\n{report.summary(results)}\n\n"
          f"Diverged, or worse than AdamW:{lines and chr(10) * 2}"
          f"{lines or ' nowhere.' + chr(10)}")


def card(name: str, artifact: artifact_lib.Artifact, file_sha256: str,
         time: float, studies: list[str],
         repeats: artifact_lib.Artifact | None = None) -> str:
  """The text of the card."""
  record = artifact.record
  software = record["software"]
  shortest, longest = record["horizon"]
  tasks = pd.DataFrame([
      {"task": task, "family": section["name"], "settings": ", ".join(
          f"{k}={v}" for k, v in section.items() if k != "name")}
      for task, section in record["tasks"].items()]).to_markdown(index=False)
  numbers = sum(x.size for x in artifact_lib.flatten(artifact.theta).values())
  config = json.dumps(record["config"], indent=2, sort_keys=True)
  versions = "; ".join(
      ", ".join(f"{k} {v}" for k, v in used.items()) for used in software)
  again = ("It also takes a\ncheckout of that git revision, unless what "
           "computes an update is still the same.\nThe card does not claim "
           "that the run was repeated.")
  if repeats is not None:
    others = ", ".join(
        str(used.get("git_revision")) for used in repeats.record["software"])
    again = f"Another run made\nthe same one (git revision {others})."
  return f"""# {name}

`{artifact.optimizer}` of {numbers} numbers under the parametrization
`{artifact.parametrization}`. Licence of the weights: {artifact.licence}.

| | |
| --- | --- |
| settings | {", ".join(f"{k} {v}" for k, v in artifact.settings.items())} |
| meta-training | {record["steps"]} outer steps of \
{record["config"]["estimator"]["name"]}, {record["config"]["copies"]} pairs of \
each of {len(record["tasks"])} tasks |
| horizon | episodes of {shortest} to {longest} inner steps |
| seed | {record["seed"]} |
| compute | {time:.2f} hours, compilation and evaluations included |
| software | {versions} |
| sha256 of theta | {artifact_lib.sha256(artifact.theta)} |
| sha256 of the file | {file_sha256} |

To make this theta again takes this software and this kind of CPU: what rounds
differently gives another theta after some hundred outer steps. {again}

## Tasks it was meta-trained on

{tasks}

## Results

Beside optimizers of optax with tuned learning rates; 95 % bootstrap intervals
over seeds. Everything is in `results.csv` of a study once its command has run.

{(chr(10)).join(studies)}
## Config

```json
{config}
```
"""


def release(run: pathlib.Path, name: str, label: str,
            studies: list[pathlib.Path], folder: pathlib.Path = FOLDER,
            repeats: str | None = None) -> None:
  """Writes `name`.safetensors and `name`.md to a folder.

  Raises:
    OSError: a file is missing.
    ValueError: a damaged artifact, a study without this optimizer, or
      `repeats` has another theta or is of the same run.
  """
  path = run / "theta.safetensors"
  artifact = artifact_lib.read(path)
  other = None if repeats is None else mulo.read(repeats)
  if other is not None:
    ours, theirs = (artifact_lib.sha256(x.theta) for x in (artifact, other))
    if ours != theirs:
      raise ValueError(f"{repeats} has another theta than {path}: {theirs} and "
                       f"{ours}, so neither repeats the other.")
    if other.record == artifact.record:
      raise ValueError(f"{repeats} is from the run in {run}, which cannot "
                       "repeat itself: give what another run made.")
  content = path.read_bytes()
  text = card(name, artifact, hashlib.sha256(content).hexdigest(), hours(run),
              [study(folder, label) for folder in studies], other)
  (folder / f"{name}.safetensors").write_bytes(content)
  (folder / f"{name}.md").write_text(text)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("run", None, "Finished workdir of meta-training.")
  flags.DEFINE_string("name", None, "Of the optimizer, for mulo.load.")
  flags.DEFINE_string("label", None, "In the studies; default: the name.")
  flags.DEFINE_list("studies", [], "Workdirs of experiments.studies.transfer.")
  flags.DEFINE_string(
      "repeats", None, "Name or file of what another run of the recipe made.")
  flags.mark_flags_as_required(["run", "name"])


def main(argv):
  """Releases one optimizer."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  found = flags.FLAGS
  try:
    release(pathlib.Path(found.run), found.name, found.label or found.name,
            [pathlib.Path(x) for x in found.studies], repeats=found.repeats)
  except (ValueError, OSError, ImportError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  print(f"Wrote {FOLDER / found.name}.safetensors and .md")


if __name__ == "__main__":
  define_flags()
  app.run(main)
