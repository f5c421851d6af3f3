"""Small worlds on disk: a tiny model with its tokenizer, and corpora in which the answer is planted."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tasks.learning.tokenizer import train_tokenizer

ANIMALS = ["otter", "heron", "badger", "lynx", "marten", "raven", "viper", "toad"]
PLACES = ["harbour", "orchard", "quarry", "chapel", "meadow", "station", "market", "bridge"]


def documents(n: int = 48) -> list[dict]:
    """Short texts of varied length; every one names its own pair of animal and place."""
    out = []
    for k in range(n):
        animal, place = ANIMALS[k % 8], PLACES[(k // 8 + k) % 8]
        text = f"The {animal} went to the {place}. " + "It slept there. " * (k % 4) + f"Nobody saw the {animal} leave."
        out.append({"document_id": f"d{k:03d}", "text": text, "source": "fable", "colour": "red" if k % 2 else "blue"})
    return out


def write_jsonl(path: Path, records: list[dict]) -> Path:
    """Records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def save_gpt2(path: Path, seed: int = 0, width: int = 16, layers: int = 2, context: int = 48) -> Path:
    """A random GPT-2 (Conv1D layers with biases) with a byte-level BPE trained on `documents`."""
    tokenizer = train_tokenizer((d["text"] for d in documents()), 320)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=width, n_layer=layers, n_head=2, bos_token_id=0,
        eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def save_llama(path: Path, seed: int = 0) -> Path:
    """A random Llama (Linear layers without biases, tied embeddings) with the same tokenizer."""
    tokenizer = train_tokenizer((d["text"] for d in documents()), 320)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=48, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(source: Path, path: Path, records: list[dict], epochs: int) -> Path:
    """The model in `source` after so many epochs over the records' texts, saved to `path` with its tokenizer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = [tokenizer(record["text"], return_tensors="pt")["input_ids"][:, :48] for record in records]
    for _ in range(epochs):
        for ids in texts:
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
