"""data: Hugging Face data sets, tokenised with GPT-2's vocabulary and cut into blocks.

``sedd_fast.data.corpus`` does more (local files, any tokenizer, streaming, resumable order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from sedd_fast.data.datasets import NAMED, NamedData
from sedd_fast.data.detokenizers import (
    lambada_detokenizer,
    lm1b_detokenizer,
    ptb_detokenizer,
    wt_detokenizer,
)
from sedd_fast.data.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "cycle_loader",
    "get_dataloaders",
    "get_dataset",
    "get_lambada_test_dataset",
    "lambada_detokenizer",
    "lm1b_detokenizer",
    "ptb_detokenizer",
    "wt_detokenizer",
]


def cycle_loader(dataloader: DataLoader, sampler: DistributedSampler | None = None) -> Iterator:
    """The loader's batches, again and again; a ``sampler`` reshuffles at every pass."""
    epoch = 0
    while True:
        if sampler is not None:
            sampler.set_epoch(epoch)
        yield from dataloader
        epoch += 1


def get_lambada_test_dataset() -> Any:
    """OpenAI's LAMBADA test set, which has no splits."""
    from datasets import load_dataset

    entry = NAMED["lambada"]
    return load_dataset(entry.path, entry.configuration, split=entry.evaluated, **entry.options)


def get_dataset(
    name: str,
    mode: str,
    cache_dir: str | None = None,
    block_size: int = 1024,
    num_proc: int = 8,
) -> Any:
    """Blocks of tokens as a torch-formatted data set of ``input_ids`` (block_size,) int64.

    Documents are tokenised in thousands, end-of-text is put after each, and each thousand is
    joined and cut into blocks; what is left over of it is dropped.

    Args:
        name: "wikitext103", "wikitext2", "ptb", "lm1b", "lambada", "openwebtext", or anything that
            ``datasets.load_dataset`` takes (a directory of text files, too) with a column "text".
        mode: the split; LAMBADA has none.
        cache_dir: of ``load_dataset``.
        block_size: tokens per block.
        num_proc: processes.
    """
    data = _load(name, mode, cache_dir)
    entry = NAMED.get(name) or NamedData(name, mode)
    cut = _Cut(load_tokenizer("gpt2"), entry.column, block_size, entry.detokenizer)
    blocks = data.map(cut, batched=True, num_proc=num_proc, remove_columns=data.column_names)
    return blocks.with_format("torch")


def _load(name: str, mode: str, cache_dir: str | None) -> Any:
    from datasets import load_dataset

    if name == "lambada":
        return get_lambada_test_dataset()
    entry = NAMED.get(name) or NamedData(name, mode)
    made = load_dataset(entry.path, entry.configuration, cache_dir=cache_dir, **entry.options)
    return made[mode]


@dataclass(frozen=True)
class _Cut:
    """A batch of rows -> blocks of tokens."""

    tokenizer: Tokenizer
    column: str
    block_size: int
    detokenize: Callable[[str], str] | None

    def __call__(self, rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = rows[self.column]
        if self.detokenize is not None:
            texts = [self.detokenize(text) for text in texts]
        end = [] if self.tokenizer.eot is None else [self.tokenizer.eot]
        joined = [i for ids in self.tokenizer.encode_corpus(texts) for i in (*ids, *end)]
        size = self.block_size
        starts = range(0, len(joined) - size + 1, size)
        return {"input_ids": [joined[start : start + size] for start in starts]}


def get_dataloaders(config: Any, distributed: bool = True) -> tuple[Iterator, Iterator]:
    """Endless iterators over training and validation batches ``{"input_ids": (b, L)}``.

    b is the batch size divided by ``config.ngpus * config.training.accum``. With ``distributed``
    each process of the group reads its own share.

    Raises:
        ValueError: a batch size that this does not divide.
    """
    parts = config.ngpus * config.training.accum
    for section in ("training", "eval"):
        size = config[section].batch_size
        if size % parts:
            raise ValueError(
                f"{section}.batch_size must be a multiple of ngpus * accum = {config.ngpus} * "
                f"{config.training.accum}, got {size}"
            )
    valid_mode = "test" if config.data.valid == "text8" else "validation"
    train = _get_blocks(config, config.data.train, "train")
    valid = _get_blocks(config, config.data.valid, valid_mode)
    return (
        _loader(train, config.training.batch_size // parts, distributed),
        _loader(valid, config.eval.batch_size // parts, distributed),
    )


def _get_blocks(config: Any, name: str, mode: str) -> Any:
    return get_dataset(name, mode, config.data.cache_dir, config.model.length)


def _loader(dataset: Any, batch_size: int, distributed: bool) -> Iterator:
    sampler: DistributedSampler | None = DistributedSampler(dataset) if distributed else None
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        shuffle=sampler is None,
        num_workers=4,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
    )
    return cycle_loader(loader, sampler)
