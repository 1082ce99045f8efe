r"""Release a meta-trained optimizer: put it and its card into mulo/pretrained.

python -m experiments.release --run=runs/mulo_s --name=mulo-s \
    --studies=runs/width,runs/depth --label=mulo-s --repeats=other.safetensors

--run is the finished workdir of meta_train.train, --studies are workdirs of
experiments.studies.transfer. The card tells how theta was found, and compares
the optimizer with the baselines in each study, with intervals. Where the
optimizer diverged or ended worse than a tuned AdamW, the card says so.

--repeats is the artifact of another run of the same config. If it has the same
theta, the card says that the result was repeated; otherwise this is an error.

A theta that fails a gate (`experiments/gates.py`) is refused, unless --accept
names the gate.

Either both files are written or none.
"""

import hashlib
import json
import pathlib
from typing import Collection

from absl import flags
import numpy as np
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import gates as gates_lib
from experiments import report
from learned_opt import artifact as artifact_lib
from meta_train.workdir import metrics
import mulo
from mulo import _hub as hub

FOLDER = pathlib.Path(mulo.__file__).parent / "pretrained"
# Names of the scores of a study on the card.
SCORES = {"mean_train_loss": "mean train loss",
          "final_train_loss": "final train loss",
          "outer_valid_loss": "validation loss", "test_loss": "test loss"}


def hours(run: pathlib.Path) -> float:
  """Return the duration of a run [hours], with compilation and evaluation."""
  rows = metrics.read(run / "metrics.jsonl")
  return sum(row.get("seconds", 0.0) for row in rows) / 3600


def failures(results: pd.DataFrame, label: str) -> list[str]:
  """Return a line for each failure of the optimizer in a study.

  A failure is a target on which a run diverged, or on which the mean of a score
  is worse than that of AdamW.

  Args:
    results: results.csv of the study.
    label: name of the optimizer in the study.
  """
  lines = []
  for target, group in results.groupby("target", sort=False):
    ours = group[group["method"] == label]
    diverged = (~np.isfinite(ours["final_train_loss"])).sum()
    if diverged:
      lines.append(f"{target}: {diverged} of {len(ours)} runs diverged")
    adamw = group[group["method"] == report.REFERENCE]
    means = {name: (ours[score].mean(), adamw[score].mean())
             for score, name in SCORES.items() if len(adamw)}
    worse = [f"{name} {mean:.4g} against {reference:.4g}"
             for name, (mean, reference) in means.items() if mean > reference]
    if worse:
      lines.append(f"{target}: {', '.join(worse)}")
  return lines


def study(folder: pathlib.Path, label: str) -> str:
  """Return the section of the card on one study.

  Args:
    folder: workdir of the study.
    label: name of the optimizer in the study.

  Raises:
    ValueError: the optimizer is not in the study.
    OSError: the study has no results.
  """
  results = pd.read_csv(folder / "results.csv")
  if label not in set(results["method"]):
    raise ValueError(f"{folder} has no optimizer {label!r}; it has "
                     f"{', '.join(results['method'].unique())}.")
  # Other learned optimizers of the study have cards of their own.
  shown = {label, *(x.label for x in baselines.BASELINES.values())}
  results = results[results["method"].isin(shown)]
  lines = "".join(f"- {line}\n" for line in failures(results, label))
  return (f"### {folder.name}\n\n```sh\n"
          f"{(folder / 'command.txt').read_text()}```\n\n"
          f"{report.table(results)}\n\n{report.summary(results)}\n\n"
          f"Diverged, or worse than AdamW:{lines and chr(10) * 2}"
          f"{lines or ' nowhere.' + chr(10)}")


def card(name: str, artifact: artifact_lib.Artifact, file_sha256: str,
         time: float, studies: list[str], gates: str,
         repeats: artifact_lib.Artifact | None = None) -> str:
  """Return the text of the card.

  Args:
    name: name of the optimizer for `mulo.load`.
    artifact: the optimizer.
    file_sha256: hash of its file.
    time: duration of meta-training [hours].
    studies: sections of the card on studies.
    gates: table of the gates.
    repeats: artifact of another run with the same theta, or None.
  """
  record = artifact.record
  software = record["software"]
  shortest, longest = record["horizon"]
  tasks = pd.DataFrame([
      {"task": task, "family": section["name"], "settings": ", ".join(
          f"{k}={v}" for k, v in section.items() if k != "name")}
      for task, section in record["tasks"].items()]).to_markdown(index=False)
  size = sum(x.size for x in artifact_lib.flatten(artifact.theta).values())
  config = json.dumps(record["config"], indent=2, sort_keys=True)
  versions = "; ".join(
      ", ".join(f"{k} {v}" for k, v in used.items()) for used in software)
  repetition = ("A repetition also\nneeds a checkout of this git revision, "
                "unless the code of meta-training is the same.\nThe card does "
                "not claim that the run was repeated.")
  if repeats is not None:
    others = ", ".join(
        str(used.get("git_revision")) for used in repeats.record["software"])
    repetition = f"Another run made\nthe same theta (git revision {others})."
  return f"""{hub.front_matter(artifact)}
# {name}

`{artifact.optimizer}` with {size} meta-parameters, under the parametrization
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

To make the same theta again, use this software and this kind of CPU: different
rounding gives another theta after some hundred outer steps. {repetition}

## Tasks of meta-training

{tasks}

## Results

Compared with optimizers of optax with tuned learning rates; 95 % bootstrap
intervals over seeds. The command of a study writes all runs to `results.csv`.

{(chr(10)).join(studies)}
## Gates

{gates}

## Config

```json
{config}
```
"""


def release(run: pathlib.Path, name: str, label: str,
            studies: list[pathlib.Path], folder: pathlib.Path = FOLDER,
            repeats: str | None = None, accepted: Collection[str] = ()
            ) -> None:
  """Write <name>.safetensors and <name>.md to a folder.

  Args:
    run: finished workdir of meta-training.
    name: name of the optimizer for `mulo.load`.
    label: name of the optimizer in the studies.
    studies: workdirs of experiments.studies.transfer.
    folder: folder of the two files.
    repeats: name or file of the artifact of another run, or None.
    accepted: gates that may fail.

  Raises:
    OSError: a file is missing.
    ValueError: a damaged artifact, a study without this optimizer, a gate that
      fails, or an artifact `repeats` that has another theta or is from the same
      run.
  """
  path = run / "theta.safetensors"
  artifact = artifact_lib.read(path)
  other = None if repeats is None else mulo.read(repeats)
  if other is not None:
    ours, theirs = (artifact_lib.sha256(x.theta) for x in (artifact, other))
    if ours != theirs:
      raise ValueError(f"{repeats} has another theta than {path}: {theirs} and "
                       f"{ours}, so neither run repeats the other.")
    if other.record == artifact.record:
      raise ValueError(f"{repeats} is from the run in {run}, which cannot "
                       "repeat itself: give the artifact of another run.")
  gates = gates_lib.table(gates_lib.check(artifact, accepted))
  content = path.read_bytes()
  text = card(name, artifact, hashlib.sha256(content).hexdigest(), hours(run),
              [study(folder, label) for folder in studies], gates, other)
  # Everything that can fail is done.
  (folder / f"{name}.safetensors").write_bytes(content)
  (folder / f"{name}.md").write_text(text)


def define_flags() -> None:
  """Define the flags."""
  flags.DEFINE_string("run", None, "Finished workdir of meta-training.",
                      required=True)
  flags.DEFINE_string("name", None, "Name of the optimizer for mulo.load.",
                      required=True)
  flags.DEFINE_string("label", None, "Name of the optimizer in the studies; "
                      "default: --name.")
  flags.DEFINE_list("studies", [], "Workdirs of experiments.studies.transfer.")
  flags.DEFINE_string("repeats", None, "Name or file of the artifact of "
                      "another run of the same config.")
  flags.DEFINE_list("accept", [], "Gates that may fail: "
                    f"{', '.join(gates_lib.LIMITS)}.")


def main(args: flags.FlagValues) -> None:
  """Release one optimizer."""
  release(pathlib.Path(args.run), args.name, args.label or args.name,
          [pathlib.Path(x) for x in args.studies], repeats=args.repeats,
          accepted=args.accept)
  print(f"Wrote {FOLDER / args.name}.safetensors and .md")


if __name__ == "__main__":
  command.run(define_flags, main)
