"""What SEDD and the autoregressive baseline share: the transformer's parts, reading and saving."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sedd_fast.files import hub
from sedd_fast.models import checkpoint, layers, overrides
from sedd_fast.models.config import SEDDConfig
from sedd_fast.names import NetworkKind


class Transformer(nn.Module):
    """Embedding, noise embedding, rotary positions, blocks and output layer, by their saved names.

    Args:
        config: the architecture.
    """

    #: As `sedd_fast.models.checkpoint` names this kind of network.
    kind: ClassVar[NetworkKind]
    #: A call returns what `forward` does; torch declares Any.
    __call__: Callable[..., Tensor]

    def __init__(self, config: SEDDConfig) -> None:
        if not isinstance(config, SEDDConfig):
            raise TypeError(
                f"config must be a SEDDConfig, got {type(config).__name__}; from settings of the "
                "original: SEDDConfig(**sedd_fast.models.checkpoint.config_from_original(settings))"
            )
        super().__init__()
        self.config = config
        embedded, predicted = self.states(config)
        self.vocab_embed = layers.EmbeddingLayer(config.hidden_size, embedded)
        self.sigma_map = layers.TimestepEmbedder(config.cond_dim)
        self.rotary_emb = layers.Rotary(config.hidden_size // config.n_heads)
        self.blocks = nn.ModuleList([layers.DDiTBlock(config) for _ in range(config.n_blocks)])
        self.output_layer = layers.DDitFinalLayer(config, predicted)

    @staticmethod
    def states(config: SEDDConfig) -> tuple[int, int]:
        """How many states have an embedding, and how many have an output."""
        raise NotImplementedError

    def _fused_linear(self) -> nn.Linear | None:
        """The head's linear layer, if outputs are made of it in this class's own way."""
        own = overrides.has_own_methods(self)
        return layers.plain_linear(self.output_layer) if own else None

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any
    ) -> Self:
        """A trained network, in evaluation mode, from a directory or the Hugging Face Hub.

        A directory holds config.json with model.safetensors or pytorch_model.bin, or is a run
        directory of the original trainer (its EMA weights are taken). Any other name is a Hub
        repository; `hub` goes to `huggingface_hub.hf_hub_download`: revision, cache_dir, token,
        force_download, local_files_only. Raises FileNotFoundError where nothing is found, and
        ValueError for unreadable or damaged files, wrong or incomplete settings, and unknown or
        missing weights.
        """
        return cls.from_checkpoint(checkpoint.read(name_or_dir, cls.kind, **hub), device)

    @classmethod
    def from_checkpoint(
        cls, saved: checkpoint.Checkpoint, device: torch.device | str = "cpu"
    ) -> Self:
        """The network of a checkpoint that was read, in evaluation mode."""
        return checkpoint.build(saved, cls).to(device).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors, in the original's format and names.

        Their SHA-256 sums go to model.sha256: `from_pretrained` compares them, and so does
        `sha256sum -c`. Tied weights are written under each of their names. Raises OSError where
        the files cannot be written, and ValueError where the weights are not those of the config's
        network (sharded, quantised, adapters); the directory is then unchanged.
        """
        weights = self.state_dict()
        try:
            with torch.device("meta"):
                like = type(self)(self.config)
        except TypeError:  # a subclass with a constructor of its own: its names are not known
            like = self
        checkpoint.check_unchanged(like, weights)
        checkpoint.write(directory, self.config, weights, self.kind)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; returns its address there.

        Options: token, private, revision, create_pr, commit_message.

        Raises:
            ConnectionError: the Hub does not answer; nothing was uploaded.
        """
        from huggingface_hub import HfApi

        if cause := hub.unreachable():
            raise ConnectionError(
                f"push_to_hub: {cause}; nothing was uploaded. Keep the network with "
                "save_pretrained(DIRECTORY) and call push_to_hub again later, or upload what it "
                f"wrote: hf upload {repo_id} DIRECTORY"
            )
        api = HfApi(token=options.pop("token", None))
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        options.setdefault("commit_message", "Upload a SEDD network")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, **options)
        return commit.pr_url or commit.commit_url
