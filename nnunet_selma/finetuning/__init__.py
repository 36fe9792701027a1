"""Parts of fine-tuning: choice and transfer of pretrained weights, heads, losses, adapters, decision threshold."""
