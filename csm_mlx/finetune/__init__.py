"""Fine-tuning CSM on recordings: `create_dataset`, `finetune_lora`, `finetune`, and the adapters in `lora`."""
