"""The bergson side of ekfac_speed.py: a process of its own, because bergson wants packages that headwater does not.

    BERGSON/bin/python tests/benchmarks/bergson_speed.py FOLDER

Started by ekfac_speed.py, which leaves FOLDER/model, FOLDER/tokens.pt and FOLDER/work.json. Reads one request per
line, {"precision": …, "stage": …}, and answers each with one line, {"seconds": …, "peak": …}. A stage is what
bergson 2.5.1's `ekfac` pipeline does, called below its tokenizer and its model loading, so that neither is timed.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

# bergson and its imports print: answers keep the pipe to themselves.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# bergson asks for both and uses neither; where they are not built for the same torch, transformers fails on them.
sys.modules["torchvision"] = sys.modules["torchaudio"] = None

import torch
from bergson.collection import collect_gradients
from bergson.config import HessianConfig, IndexConfig, InversionConfig, PreprocessConfig, ScoreConfig
from bergson.data import allocate_batches, load_scores
from bergson.hessians.apply_hessian import EkfacApplicator, EkfacConfig
from bergson.hessians.eigenvectors import eigendecompose_owned, save_uncorrected_eigenvalues
from bergson.hessians.hessian_approximations import collect_hessians
from bergson.score.score import create_scorer
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset

SHORT = {"float32": "fp32", "bfloat16": "bf16"}


class Bergson:
    """EK-FAC of one model in one precision: fit stages over the fit set, then scores of candidates by query."""

    def __init__(self, folder: Path, precision: str) -> None:
        work = json.loads((folder / "work.json").read_text())
        tokens = torch.load(folder / "tokens.pt")
        self.folder = folder / f"bergson-{precision}"
        self.index = IndexConfig(
            run_path=str(self.folder / "fit"),
            model=str(folder / "model"),
            precision=SHORT[precision],
            include_bias=True,
            token_batch_size=work["batch_size"] * work["context"],
        )
        low = SHORT[precision] if work["settings"] == "all" else "fp32"
        self.hessian = HessianConfig(method="kfac", ev_correction=True, hessian_dtype=low)
        self.score_precision = low
        self.model, _ = setup_model_and_peft(self.index, attn_implementation="sdpa")
        prefix = self.model.base_model_prefix + "."
        self.modules = {name.removeprefix(prefix) for name in work["modules"]}
        self.data = {name: _dataset(ids) for name, ids in tokens.items()}
        self.fit = self.index.partial_run_path
        self.fit.mkdir(parents=True, exist_ok=True)

    def _collect(self, **keywords):
        return collect_hessians(
            model=self.model,
            data=self.data["fit"],
            index_cfg=self.index,
            batches=self._batches("fit"),
            target_modules=self.modules,
            hessian_cfg=self.hessian,
            **keywords,
        )

    def _batches(self, name: str) -> list[list[int]]:
        return allocate_batches(self.data[name]["length"][:], self.index.token_batch_size)

    def covariances(self) -> None:
        """Σ ā āᵀ and Σ δ δᵀ; bergson keeps them in memory for the eigenbases, and writes them."""
        self.covariance = self._collect()

    def eigenbases(self) -> None:
        """Q_A, Q_S and K-FAC's eigenvalues; the covariances are used up."""
        found, total = self.covariance, torch.load(self.fit / "total_processed.pt", map_location="cpu")
        sides = (
            (found.A_cov_dict, found.A_shapes, "eigen_activation_sharded"),
            (found.S_cov_dict, found.S_shapes, "eigen_gradient_sharded"),
        )
        (self.q_a, values_a), (self.q_s, values_s) = (
            eigendecompose_owned(sums, shapes, None, total, str(self.fit / name), found.dtype, found.num_positions)
            for sums, shapes, name in sides
        )
        save_uncorrected_eigenvalues(
            self.fit, values_a, values_s, total, 0, 1, len(self.data["fit"]), found.num_positions
        )

    def eigenvalues(self) -> None:
        """Λ."""
        n = len(self.data["fit"])
        self._collect(ev_correction=True, num_documents=n, eigenvectors=(self.q_a, self.q_s))

    def scores(self) -> None:
        """Query gradients, their preconditioning, and every candidate against them; each step through its files."""
        gradients, preconditioned, scored = (self.folder / name for name in ("query", "preconditioned", "scores"))
        for path in (gradients, preconditioned, scored):
            shutil.rmtree(path, ignore_errors=True)
        query = self._index("query")
        self._gradients(query, "queries")
        shutil.move(query.partial_run_path, gradients)
        request = EkfacConfig(str(self.fit), str(gradients), str(preconditioned), ev_correction=True)
        EkfacApplicator(request, inversion_cfg=InversionConfig()).compute_ivhp_sharded()
        index = self._index("scores")
        scorer = create_scorer(
            index.partial_run_path,
            self.data["candidates"],
            ScoreConfig(query_path=str(preconditioned), precision=self.score_precision),
            PreprocessConfig(),
            device=self.model.device,
            dtype=torch.bfloat16 if self.score_precision == "bf16" else torch.float32,
        )
        self._gradients(index, "candidates", scorer=scorer)
        scorer.writer.flush()
        shutil.move(index.partial_run_path, scored)

    def _index(self, name: str) -> IndexConfig:
        index = replace(self.index, run_path=str(self.folder / name))
        shutil.rmtree(index.partial_run_path, ignore_errors=True)
        index.partial_run_path.mkdir(parents=True)
        return index

    def _gradients(self, index: IndexConfig, name: str, **keywords) -> None:
        collect_gradients(
            self.model,
            self.data[name],
            create_processor(self.model, index),
            index,
            batches=self._batches(name),
            target_modules=self.modules,
            **keywords,
        )

    def write_scores(self) -> None:
        """Leave the scores [query, candidate] where ekfac_speed.py reads them."""
        found = load_scores(self.folder / "scores")
        columns = [torch.as_tensor(found.get(slice(None), k).astype("float32")) for k in range(found.num_scores)]
        torch.save(torch.stack(columns), self.folder / "scores.pt")


def _dataset(ids: torch.Tensor) -> Dataset:
    return Dataset.from_dict({"input_ids": ids.tolist(), "length": [ids.shape[1]] * len(ids)})


def timed(action) -> dict[str, float | None]:
    """Seconds of one call, and on a GPU the bytes that it took above what was there."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() if cuda else 0
    start = time.perf_counter()
    action()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if cuda:
        torch.cuda.empty_cache()
    return {"seconds": seconds, "peak": torch.cuda.max_memory_allocated() - before if cuda else None}


def main() -> None:
    """Answer requests until there are no more."""
    folder = Path(sys.argv[1])
    work = json.loads((folder / "work.json").read_text())
    torch.set_num_threads(work["threads"])
    torch.set_flush_denormal(True)  # as on the other sides
    torch.backends.cuda.matmul.allow_tf32 = work["tf32"]
    sides: dict[str, Bergson] = {}
    for line in sys.stdin:
        request = json.loads(line)
        precision = request["precision"]
        if precision not in sides:
            sides[precision] = Bergson(folder, precision)
        print(json.dumps(timed(getattr(sides[precision], request["stage"]))), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
