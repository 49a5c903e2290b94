"""A stand-in for Dream's code: the same classes, settings, modules and calls; another body."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class DreamConfig(PretrainedConfig):
    model_type = "Dream"

    def __init__(self, vocab_size=40, hidden_size=16, max_position_embeddings=2048, **more):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{"tie_word_embeddings": False, **more})


class DreamBaseModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed_tokens(input_ids)
        x = x + torch.arange(x.shape[1], device=x.device)[:, None].to(x.dtype).sin()
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return (torch.tanh(x + y[:, 0]),)


class DreamModel(PreTrainedModel):
    config_class = DreamConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, num_logits_to_keep=0, **unused):
        hidden = self.model(input_ids, attention_mask)[0]
        return MaskedLMOutput(logits=self.lm_head(hidden[:, -num_logits_to_keep:, :]))

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head
