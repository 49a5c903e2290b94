"""A stand-in for MDLM's code: the same classes, settings, modules and calls; another body."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class MDLMConfig(PretrainedConfig):
    model_type = "mdlm"

    def __init__(self, vocab_size=40, model_length=48, hidden_dim=16, **more):
        self.vocab_size, self.model_length = vocab_size, model_length
        self.hidden_dim, self.time_conditioning = hidden_dim, more.pop("time_conditioning", True)
        super().__init__(**{"tie_word_embeddings": False, **more})


class DDitFinalLayer(nn.Module):
    def __init__(self, hidden_dim, out_channels):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_dim)
        self.linear = nn.Linear(hidden_dim, out_channels)

    def forward(self, x, c):
        return self.linear(self.norm_final(x) * (1 + c[:, None]))


class DITBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vocab_embed = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = nn.Linear(1, config.hidden_dim)
        self.mix = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.output_layer = DDitFinalLayer(config.hidden_dim, config.vocab_size)

    def forward(self, indices, sigma):
        if not self.config.time_conditioning:
            sigma = torch.zeros_like(sigma)
        x = self.vocab_embed(indices)
        place = torch.arange(x.shape[1], device=x.device)[:, None].to(x.dtype)
        c = torch.tanh(self.sigma_map(sigma[:, None]))
        x = torch.tanh(self.mix(x + ((1 + place) * x).mean(1, keepdim=True) + place.sin()))
        return self.output_layer(x, c)


class MDLM(PreTrainedModel):
    config_class = MDLMConfig
    base_model_prefix = "mdlm"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = DITBackbone(config)
        self.post_init()

    def forward(self, input_ids=None, timesteps=None, output_hidden_states=None, return_dict=None):
        return MaskedLMOutput(logits=self.backbone(indices=input_ids, sigma=timesteps))
