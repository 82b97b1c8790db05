"""Train, certify and write the shipped tier-2 cases of Plantbench.

`python scripts/make_plantbench.py [FOLDER] [FAMILY …]` (default: datasets/plantbench, all four).
`python scripts/make_plantbench.py --certify [FOLDER] [FAMILY …]` certifies the models that lie there anew, and writes
nothing but their truth.json.

Each model is trained as `probing.plantbench.tier2_models` says, then certified on 4 096 minimal pairs a property. A
certified label that contradicts the intended one, a B that is not decodable at the query, or wrong answers stop the
script with nothing written: no other seed is tried. About a minute and a half a model on one thread.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from probing.plantbench.built import Built, of_training
from probing.plantbench.case import Truth
from probing.plantbench.certifying import certified
from probing.plantbench.folders import PAIRS, write_case, write_truth
from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.tier2_models import Recipe, Trained, accuracy, trained
from probing.seeds import child_seed, generator

RECIPES = {
    "gpt2": Recipe(family="gpt2"),
    "llama": Recipe(family="llama"),
    "bert": Recipe(family="bert"),
    "pooled": Recipe(family="bert", pooled=True, invariant=0.3),
}
LEAST_ACCURACY, LEAST_PROBE = 0.98, 0.9


def make(name: str, recipe: Recipe, folder: Path) -> None:
    """Train, certify, write one case."""
    start = time.process_time()
    model = trained(recipe)
    right = accuracy(model.planted, 4096, generator(recipe.seed, "accuracy"))
    seconds = time.process_time() - start
    built = of_training(recipe, model)
    truth = certified(built.claim, seed=child_seed(recipe.seed, "certificate"))
    print(f"{name}: {seconds:.0f} s of training, answers right {right:.4f}; {time.process_time() - start:.0f} s in all")
    print(table(truth))
    refuse(built, truth, right)
    write_case(folder / name, built, truth, pairs=PAIRS, facts={"accuracy": round(right, 4)})


def certify_again(name: str, folder: Path) -> None:
    """Certify a model that was written before, and write its truth anew."""
    told = json.loads((folder / name / "truth.json").read_text(encoding="utf-8"))
    recipe = Recipe(**told["configuration"])
    direction = torch.tensor(told["planted_directions"]["B.query"], dtype=torch.float64)
    built = of_training(recipe, Trained(written(folder / name, recipe), direction, 0.0))
    truth = certified(built.claim, seed=child_seed(recipe.seed, "certificate"))
    print(table(truth))
    refuse(built, truth, told["accuracy"])
    write_truth(folder / name, built, truth, list(told["sha256"]), {"accuracy": told["accuracy"]})


def written(folder: Path, recipe: Recipe) -> PlantedModel:
    """The model of a folder."""
    loader = AutoModel if recipe.pooled else AutoModelForMaskedLM if recipe.family == "bert" else AutoModelForCausalLM
    pooled = load_file(folder / "readout.safetensors")["weights"] if recipe.pooled else None
    return PlantedModel(loader.from_pretrained(folder / "model").eval(), recipe.language, pooled)


def refuse(built: Built, truth: Truth, right: float) -> None:
    """Raise where the model is not what it was trained to be."""
    wrong = [str(cell) for cell, label in built.claim.intended.items() if truth.cells[cell].certificate.label != label]
    faint = [
        str(cell)
        for cell, found in truth.cells.items()
        if (cell.property, cell.place.position) == ("B", "query")
        and int(cell.place.site.removeprefix("resid.")) >= built.configuration["decodable_from"]
        and found.probe_accuracy < LEAST_PROBE
    ]
    if wrong or faint or right < LEAST_ACCURACY:
        raise RuntimeError(f"not as intended: answers right {right}; not certified {wrong}; not decodable {faint}")


def table(truth: Truth) -> str:
    """The certificates for the screen."""
    lines = ["cell                      label   S       E        MF      probe"]
    for cell, found in truth.cells.items():
        c = found.certificate
        mf = "      " if c.mf is None else f"{c.mf:6.3f}"
        lines.append(f"{cell!s:25} {c.label:7} {c.s:.4f}  {c.e:.5f}  {mf}  {found.probe_accuracy:.4f} {c.sub_label}")
    return "\n".join(lines)


def hashes(folder: Path) -> str:
    """Table of the weights' hashes, for the README."""
    rows = []
    for truth in sorted(folder.glob("*/truth.json")):
        told = json.loads(truth.read_text(encoding="utf-8"))
        size = (truth.parent / "model" / "model.safetensors").stat().st_size
        digest = told["sha256"]["model/model.safetensors"]
        rows.append(f"| {truth.parent.name} | {size // 1024} KiB | `{digest}` |")
    return "\n".join(rows)


def main() -> None:
    default = Path(__file__).resolve().parent.parent / "datasets" / "plantbench"
    given = [argument for argument in sys.argv[1:] if argument != "--certify"]
    folder = Path(given[0]) if given else default
    torch.set_num_threads(1)  # steps this small lose more to waiting than a second thread gains
    for name in given[1:] or RECIPES:
        if "--certify" in sys.argv:
            certify_again(name, folder)
        else:
            make(name, RECIPES[name], folder)
    print(hashes(folder))


if __name__ == "__main__":
    main()
