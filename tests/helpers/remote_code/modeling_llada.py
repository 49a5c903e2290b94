"""A stand-in for LLaDA's code: the same classes, settings, modules and calls; another body."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, vocab_size=40, d_model=16, weight_tying=False, scale_logits=False, **more):
        self.vocab_size, self.embedding_size = vocab_size, more.pop("embedding_size", vocab_size)
        self.d_model, self.scale_logits = d_model, scale_logits
        self.weight_tying, self.max_sequence_length = weight_tying, 64
        self.ignores_padding = more.pop("ignores_padding", False)
        super().__init__(**{"tie_word_embeddings": False, **more})


class LLaDAModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, size = config, config.embedding_size
        body = {"wte": nn.Embedding(size, config.d_model)}
        body["mix"] = nn.Linear(config.d_model, config.d_model)
        if not config.weight_tying:
            body["ff_out"] = nn.Linear(config.d_model, size, bias=False)
        self.transformer = nn.ModuleDict(body)

    def forward(self, input_ids, attention_mask=None):
        x = self.transformer.wte(input_ids)
        read = torch.ones_like(input_ids)
        if attention_mask is not None and not self.config.ignores_padding:
            read = attention_mask
        read = read[..., None].to(x.dtype)
        place = torch.arange(x.shape[1], device=x.device)[:, None].to(x.dtype)
        mean = ((1 + place) * x * read).sum(1, keepdim=True) / ((1 + place) * read).sum(1, True)
        x = torch.tanh(self.transformer.mix(x + mean + place.sin()))
        if self.config.weight_tying:
            logits = nn.functional.linear(x, self.transformer.wte.weight)
        else:
            logits = self.transformer.ff_out(x)
        if self.config.scale_logits:
            logits.mul_(self.config.d_model**-0.5)
        return logits


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **unused):
        logits = self.model(input_ids, attention_mask)
        return CausalLMOutputWithPast(logits=logits)

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        tied = self.config.weight_tying
        return self.model.transformer.wte if tied else self.model.transformer.ff_out
