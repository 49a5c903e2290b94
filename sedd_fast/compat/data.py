"""data: Hugging Face data sets, tokenised with GPT-2's vocabulary and cut into blocks.

``sedd_fast.data.corpus`` does more (local files, any tokenizer, streaming, resumable order).
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain, count
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from sedd_fast.data.blocks import with_end
from sedd_fast.data.detokenizers import (  # noqa: F401 (names of the original's data.py)
    lambada_detokenizer,
    lm1b_detokenizer,
    ptb_detokenizer,
    wt_detokenizer,
)
from sedd_fast.data.sources import HubDataset
from sedd_fast.data.tokenizers import Tokenizer, load_tokenizer


def cycle_loader(
    dataloader: DataLoader[Any], sampler: DistributedSampler[Any] | None = None
) -> Iterator[Any]:
    """The loader's batches, again and again; a ``sampler`` reshuffles at every pass."""
    for epoch in count():
        if sampler is not None:
            sampler.set_epoch(epoch)
        yield from dataloader


def get_lambada_test_dataset() -> Any:
    """OpenAI's LAMBADA test set, which has no splits."""
    return HubDataset("lambada", split="test").load()


def get_dataset(
    name: str, mode: str, cache_dir: str | None = None, block_size: int = 1024, num_proc: int = 8
) -> Any:
    """Blocks of tokens as a torch-formatted data set of ``input_ids`` (block_size,) int64.

    Documents are tokenised in thousands, end-of-text is put after each, and each thousand is
    joined and cut into blocks; what is left over of it is dropped.

    Args:
        name: "wikitext103", "wikitext2", "ptb", "lm1b", "lambada", "openwebtext", or anything that
            ``datasets.load_dataset`` takes (a directory of text files, too) with a column "text".
        mode: the split; LAMBADA has none.
        cache_dir: passed to ``load_dataset``.
        block_size: tokens per block.
        num_proc: number of processes.
    """
    source = HubDataset(name, split=mode)
    data = get_lambada_test_dataset() if name == "lambada" else source.load(cache_dir)
    cut = partial(_cut, load_tokenizer("gpt2"), source, block_size)
    blocks = data.map(cut, batched=True, num_proc=num_proc, remove_columns=data.column_names)
    return blocks.with_format("torch")


def _cut(
    tokenizer: Tokenizer, source: HubDataset, block_size: int, rows: dict[str, list[str]]
) -> dict[str, list[list[int]]]:
    """A batch of rows -> blocks of tokens."""
    texts = list(source.clean(rows[source.text_column]))
    joined = list(chain.from_iterable(with_end(tokenizer, texts)))
    starts = range(0, len(joined) - block_size + 1, block_size)
    return {"input_ids": [joined[start : start + block_size] for start in starts]}


def get_dataloaders(config: Any, distributed: bool = True) -> tuple[Iterator[Any], Iterator[Any]]:
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
    loaders = []
    for name, mode, size in (
        (config.data.train, "train", config.training.batch_size),
        (config.data.valid, valid_mode, config.eval.batch_size),
    ):
        blocks = get_dataset(name, mode, config.data.cache_dir, config.model.length)
        sampler: DistributedSampler[Any] | None = None
        if distributed:
            sampler = DistributedSampler(blocks)
        options: dict[str, Any] = {"num_workers": 4, "persistent_workers": True}
        options |= {"shuffle": sampler is None, "pin_memory": torch.cuda.is_available()}
        loader = DataLoader(blocks, size // parts, sampler=sampler, **options)
        loaders.append(cycle_loader(loader, sampler))
    return loaders[0], loaders[1]
