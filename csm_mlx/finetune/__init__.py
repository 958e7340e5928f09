"""Fine-tuning CSM: datasets, LoRA and full fine-tuning."""
