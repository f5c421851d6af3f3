"""How long do a fit and a scoring pass take, beside other implementations of EK-FAC and beside the model alone?

    python tests/benchmarks/ekfac_speed.py                                       beside kronfluence, if installed
    python tests/benchmarks/ekfac_speed.py --bergson-python BERGSON/bin/python   beside bergson, too
    python tests/benchmarks/ekfac_speed.py --device cuda --model llama-1b --precisions native

Every side does the same work: a model with random weights, its MLP modules with their biases, sequences of Zipf
tokens of one length, sampled Fisher (labels drawn from the model), damping .1 · mean(Λ) per module, equal batches,
sdpa attention, denormals flushed to zero. Stages are timed round-robin: in a round each side does a stage before
any does the next, so that a machine busy with other things slows all alike. Printed are the median over rounds and
(lowest … highest), and ratios within a round. Every side writes its factors to a temporary directory and, but for
bergson, which hands some on in memory, reads them from there; models and libraries are loaded before the clock starts.
Freed memory is kept for the next pass, as headwater's commands have it, for kronfluence too, which shares the process.

Also printed: one scoring pass of 1, 8 and 64 prepared queries beside a floor, which is a forward pass and a
backward pass through activations over the same sequences, written here without headwater; and what our precision
policy does to the ranks of scores. Our scores stay apart by module and keep 32 singular directions of each query;
the others sum over modules and keep whole query gradients, as is their default. Self-influence is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from ekfac_sides import (
    FIT,
    PASS,
    STAGES,
    Bergson,
    Kronfluence,
    Ours,
    Timing,
    Work,
    bergson_process,
    dtype_name,
    our_products,
    timed,
    tracked_names,
)

from storage.environment import keep_freed_memory
from tasks.influence.compression import LowRank
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import native_precision

PRESETS = {  # layers, width, context, vocabulary
    "neox": (6, 384, 256, 8192),
    "llama-1b": (16, 2048, 512, 32000),
}


# The floor


def floor(work: Work, precision: torch.dtype) -> None:
    """Forward, and backward through activations to the outputs of the tracked modules; nothing is made of them."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        outputs.append(output if output.requires_grad else output.requires_grad_())

    handles = [work.model.get_submodule(name).register_forward_hook(keep) for name in work.names]
    device = work.model.device
    try:
        for rows in work.candidates.split(work.batch_size):
            ids = rows.to(device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = work.model(input_ids=ids, use_cache=False).logits
                loss = functional.cross_entropy(
                    logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
                )
            torch.autograd.grad(loss, outputs)
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()


def model_flops(work: Work) -> float:
    """Floating-point operations of the floor per position: matrix products, and half of attention's square."""
    linear = {n: m.weight.numel() for n, m in work.model.named_modules() if isinstance(m, nn.Linear)}
    names = list(linear)
    behind = names[names.index(work.names[0]) + 1 :]  # backward stops at the first tracked output
    config = work.model.config
    attention = 2 * config.num_hidden_layers * config.hidden_size * work.fit.shape[1]
    return 2 * sum(linear.values()) + 2 * sum(linear[n] for n in behind) + 3 * attention


def matrix_rate(device: torch.device, precision: torch.dtype) -> float:
    """Floating-point operations per second of the best of ten large products."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=precision)
    return 2 * n**3 / min(timed(device, lambda: a @ b).seconds for _ in range(10))


# Measurement and report


def label(side: Ours | Kronfluence | Bergson) -> str:
    """Library and precision: a column's name."""
    return f"{side.library} {dtype_name(side.precision)}"


def round_robin(rounds: int, runs: dict[tuple[str, str], Callable[[], Timing]]) -> dict[tuple[str, str], list[Timing]]:
    """Every run in order, then all again; an interrupted measurement has shown what it had."""
    found = defaultdict(list)
    for k in range(rounds):
        for key, run in runs.items():
            found[key].append(run())
            print(f"round {k + 1}: {', '.join(key)}: {found[key][-1].seconds:.3f} s", file=sys.stderr, flush=True)
    return found


def measure_stages(sides: list, options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Seconds by (stage, side) and round, with the fit as a sum; prints peak memory where there is any."""
    runs = {(stage, label(side)): partial(side.run, stage) for stage in STAGES for side in sides}
    found = round_robin(options.rounds, runs)
    seconds = {key: [t.seconds for t in timings] for key, timings in found.items()}
    for side in map(label, sides):
        seconds["fit", side] = [sum(parts) for parts in zip(*(seconds[stage, side] for stage in FIT), strict=True)]
    if any(t.peak is not None for timings in found.values() for t in timings):
        print("\nPeak memory in GiB above model and factors that were there before:\n")
        peaks = {key: f"{max(t.peak for t in timings) / 2**30:.2f}" for key, timings in found.items()}
        table("stage", STAGES, [label(side) for side in sides], peaks)
    return seconds


def spread(values: list[float], unit: str) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g} … {max(values):.3g})"


def ratios(slower: list[float], faster: list[float]) -> str:
    """Ratio of two measurements within a round."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)], "")


def table(corner: str, rows: tuple, columns: list[str], cells: dict[tuple[str, str], str]) -> None:
    """A markdown table."""
    print(f"| {corner} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {row} | {' | '.join(cells.get((row, column), '') for column in columns)} |")


def report_stages(sides: list, seconds: dict[tuple[str, str], list[float]]) -> None:
    """Seconds of every side, and how many times longer the others take than ours."""
    rows = (*FIT, "fit", "scores")
    print("\nSeconds:\n")
    table("stage", rows, [label(s) for s in sides], {key: spread(values, " s") for key, values in seconds.items()})
    ours, others = ([s for s in sides if isinstance(s, Ours) is mine] for mine in (True, False))
    pairs = [(a, b) for a in others for b in ours if a.precision in (b.precision, torch.float32)]
    if pairs:
        print("\nTimes longer than headwater takes:\n")
        cells = {
            (row, f"{label(a)} ÷ {label(b)}"): ratios(seconds[row, label(a)], seconds[row, label(b)])
            for row in rows
            for a, b in pairs
        }
        table("stage", rows, [f"{label(a)} ÷ {label(b)}" for a, b in pairs], cells)


def report_floor(ours: list[Ours], options: argparse.Namespace) -> dict[str, float]:
    """Scoring passes of several queries beside the floor; the floor's median seconds by precision."""
    runs, floors = {}, {}
    n = len(ours[0].work.candidates)
    device = ours[0].work.model.device
    print("\nQuery gradients, preconditioned and compressed: once before a pass, and a part of `scores` above:\n")
    for side in ours:
        name = dtype_name(side.precision)
        runs["floor", name] = partial(timed, device, partial(floor, side.work, side.precision))
        for q in options.floor_queries:
            forms: list = []
            queries = side.work.many_queries[:q]
            spent = timed(device, lambda forms=forms, side=side, queries=queries: forms.extend(side.prepare(queries)))
            print(f"- {counted(q)} for {name}: {spent.seconds:.3g} s; {described(forms)}", flush=True)
            runs[counted(q), name] = partial(timed, device, partial(side.score, forms))
    found = round_robin(options.rounds, runs)
    seconds = {key: [t.seconds for t in timings] for key, timings in found.items()}
    passes = tuple(dict.fromkeys(row for row, _ in runs))
    cells, few = {}, counted(options.floor_queries[0])
    for (row, name), values in seconds.items():
        first = seconds[few, name]
        cells[row, name] = spread(values, " s")
        cells[row, f"{name} ÷ floor"] = ratios(values, seconds["floor", name])
        cells[row, f"{name} ÷ {few}"] = "" if row == "floor" else ratios(values, first)
        if row == "floor":
            floors[name] = statistics.median(values)
    print(f"\nOne pass over the {n} candidates with queries prepared, beside forward and backward alone:\n")
    table("pass", passes, list(dict.fromkeys(column for _, column in cells)), cells)
    return floors


def counted(queries: int) -> str:
    """1 query, 2 queries."""
    return f"{queries} quer{'y' if queries == 1 else 'ies'}"


def described(forms: list) -> str:
    """Which form compression chose, over all modules, and what it loses at most."""
    kinds = [
        f"rank {f.rank}" if isinstance(f, LowRank) else f"subspace {'×'.join(map(str, f.cores.shape[1:]))}"
        for f in forms
    ]
    worst = max(float(form.residual.max()) for form in forms)
    return f"{', '.join(f'{k} ({kinds.count(k)} modules)' for k in dict.fromkeys(kinds))}; residual up to {worst:.2g}"


def report_rate(ours: list[Ours], seconds: dict[tuple[str, str], list[float]], floors: dict[str, float]) -> None:
    """Tokens per second, and which share of the device's rate of large products the counted operations are."""
    work = ours[0].work
    base = model_flops(work)
    cells, columns = {}, []
    for side in ours:
        name, rate = dtype_name(side.precision), matrix_rate(work.model.device, side.precision)
        columns += [f"{name}, tokens/s", f"{name}, share of {rate / 1e12:.3g} TFLOP/s"]
        products = our_products(side, side.prepare(work.queries))
        spent = {stage: statistics.median(seconds[stage, label(side)]) for stage in STAGES if stage != "eigenbases"}
        for stage, took in (spent | {"floor": floors.get(name)}).items():
            if took:
                tokens = (work.fit if stage in FIT else work.candidates).numel()
                cells[stage, columns[-2]] = f"{tokens / took:,.0f}"
                cells[stage, columns[-1]] = f"{tokens * (base + products.get(stage, 0)) / took / rate:.1%}"
    print("\nRate of ours (operations counted: the model's forward, backward through activations, our products):\n")
    table("stage", tuple(dict.fromkeys(row for row, _ in cells)), columns, cells)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each row; scores are real numbers, so ties are not averaged."""
    ranks = torch.stack([x.argsort(dim=1).argsort(dim=1).double() for x in (a, b)])
    ranks = ranks - ranks.mean(-1, keepdim=True)
    return (ranks[0] * ranks[1]).sum(-1) / ranks.norm(dim=-1).prod(0)


def report_quality(sides: list) -> None:
    """What a precision, or another implementation's draw of labels, does to the ranks of candidates."""
    print("\nSpearman correlation of scores over candidates, mean over queries and lowest:\n")
    print("| scores | beside | mean | lowest |\n|---|---|---|---|")
    reference = {side.library: side for side in reversed(sides)}
    first = reference["headwater"]
    for side in sides:
        for other in dict.fromkeys((reference[side.library], first)):
            if side is not other:
                print_correlation(label(side), label(other), side.result, other.result)


def print_correlation(name: str, beside: str, a: Tensor, b: Tensor) -> None:
    """One row of the table of correlations."""
    found = spearman(a, b)
    print(f"| {name} | {beside} | {found.mean():.5f} | {found.min():.5f} |")


def report_parity(work: Work, options: argparse.Namespace) -> None:
    """Ours and kronfluence in float32 on one matrix: true labels, one absolute damping, full rank."""
    full = replace(work, rank=min(work.model.config.hidden_size, work.model.config.intermediate_size) + 1)
    ours = Ours(full, torch.float32, work.folder / "parity", objective=true_token_gradient)
    other = Kronfluence(work, torch.float32, options, parity=True)
    for stage in FIT:
        ours.run(stage)
        other.run(stage)
    means = [float(values.double().mean()) for values in ours._load("eigenvalues").values()]
    ours.damping = other.pairs.damping_factor = 0.1 * statistics.fmean(means)
    ours.run("scores")
    other.run("scores")
    print("\nThe same, of one matrix (empirical Fisher, one absolute damping, full rank):\n")
    print("| scores | beside | mean | lowest |\n|---|---|---|---|")
    print_correlation("kronfluence float32", "headwater float32", other.result, ours.result)


# Set-up


def random_model(options: argparse.Namespace) -> PreTrainedModel:
    """GPT-NeoX or Llama with random float32 weights, frozen."""
    torch.manual_seed(0)
    heads = max(1, options.width // 64)
    shape = {
        "num_hidden_layers": options.layers,
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_attention_heads": heads,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": max(options.context, PASS),
    }
    if options.model == "neox":
        config = GPTNeoXConfig(**shape)
    else:
        config = LlamaConfig(**shape, num_key_value_heads=max(1, heads // 4))
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def zipf_tokens(options: argparse.Namespace, sequences: int, seed: int) -> Tensor:
    """Independent tokens, the k-th of them with a probability in proportion to 1 / (k + 2.7)."""
    weights = 1 / (torch.arange(options.vocabulary) + 2.7)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weights, sequences * options.context, replacement=True, generator=generator)
    return drawn.view(sequences, options.context)


def parse() -> argparse.Namespace:
    """Options; sizes that are not given are those of the model's preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", choices=PRESETS, default="neox")
    add("--device", default="cpu")
    for name in ("layers", "width", "context", "vocabulary"):
        add(f"--{name}", type=int)
    add("--sequences", type=int, default=256, help="of the fit")
    add("--candidates", type=int, default=512)
    add("--queries", type=int, default=8)
    add("--rank", type=int, default=32, help="singular directions that headwater keeps of each query and module")
    add("--batch-size", type=int, default=16, help="sequences per pass of the others, and of our scores")
    add("--modules", default="mlp", help="mlp, attention, all, or a regular expression on module names")
    add("--precisions", nargs="+", choices=("float32", "native"), default=("float32", "native"))
    add("--rounds", type=int, default=3)
    add("--threads", type=int)
    add("--floor-queries", nargs="*", type=int, default=(1, 8, 64), help="none: leave the floor out")
    add("--against", choices=("kronfluence", "none"), default="kronfluence")
    add("--bergson-python", help="interpreter of an environment that holds bergson")
    add(
        "--their-settings",
        nargs="+",
        choices=("amp", "smart", "all"),
        default=("amp", "all"),
        help="of kronfluence in bfloat16: the pass alone (amp_dtype), or its helpers that lower sums and products too",
    )
    add("--their-rank", type=int, help="kronfluence's query_gradient_low_rank; without it query gradients stay whole")
    add("--tf32", action="store_true", help="let float32 products of a GPU round to TF32, on every side")
    add("--parity", action="store_true", help="also compare scores with kronfluence's of the same matrix")
    options = parser.parse_args()
    for name, value in zip(("layers", "width", "context", "vocabulary"), PRESETS[options.model], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def report_setting(work: Work, options: argparse.Namespace) -> None:
    """Machine, versions and sizes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    machine = torch.cuda.get_device_name() if work.model.device.type == "cuda" else cpu
    parameters = sum(p.numel() for p in work.model.parameters())
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}")
    print(f"`python {' '.join(sys.argv)}`\n")
    print(
        f"{options.model}, {parameters / 1e6:.1f} M parameters, {options.layers} layers of width {options.width}, "
        f"{len(work.names)} modules; fit on {len(work.fit)} sequences of {options.context} tokens; "
        f"{options.queries} queries × {len(work.candidates)} candidates, rank {work.rank}, "
        f"batches of {work.batch_size}; {options.rounds} round(s). "
        f"In bfloat16 kronfluence runs with {' and '.join(options.their_settings)} of its settings low; "
        f"kronfluence's query rank: {options.their_rank or 'full'}."
    )


def make_work(options: argparse.Namespace, folder: Path) -> Work:
    """Model and tokens."""
    model = random_model(options)
    return Work(
        model,
        names=tracked_names(model, options.modules),
        fit=zipf_tokens(options, options.sequences, seed=2),
        queries=zipf_tokens(options, options.queries, seed=1),
        many_queries=zipf_tokens(options, max(options.floor_queries, default=1), seed=1),
        candidates=zipf_tokens(options, options.candidates, seed=3),
        batch_size=options.batch_size,
        rank=options.rank,
        folder=folder,
    )


def make_sides(work: Work, options: argparse.Namespace, bergson: subprocess.Popen | None) -> list:
    """Ours and the others, precision by precision, in the order in which they are timed."""
    named = {"float32": torch.float32, "native": native_precision(work.model.device)}
    sides: list = []
    for precision in dict.fromkeys(named[name] for name in options.precisions):
        sides.append(Ours(work, precision, work.folder / dtype_name(precision)))
        if options.against == "kronfluence":
            kinds = options.their_settings if precision != torch.float32 else ("amp",)
            sides.extend(Kronfluence(work, precision, options, kind) for kind in kinds)
        if bergson:
            sides.append(Bergson(bergson, work, precision))
        floor(replace(work, candidates=work.candidates[: work.batch_size]), precision)  # libraries warm up
    return sides


def main() -> None:
    """Measure, and print markdown; progress goes to the error stream."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(options, Path(folder))
        report_setting(work, options)
        if options.against == "kronfluence" and find_spec("kronfluence") is None:
            print("\nkronfluence is not installed: its columns and --parity are left out.")
            options.against = "none"
        with bergson_process(work, options) as bergson:
            sides = make_sides(work, options, bergson)
            seconds = measure_stages(sides, options)
            report_stages(sides, seconds)
            report_quality(sides)
        ours = [side for side in sides if isinstance(side, Ours)]
        floors = report_floor(ours, options) if options.floor_queries else {}
        report_rate(ours, seconds, floors)
        if options.parity and options.against == "kronfluence":
            report_parity(work, options)


if __name__ == "__main__":
    main()
