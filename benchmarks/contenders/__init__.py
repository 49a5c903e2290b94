"""Implementations that sedd_fast is compared with: eager, torch.compile, the original code."""
