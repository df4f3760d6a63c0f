"""LoRA adapters: as directions, and made of them."""
