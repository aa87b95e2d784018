"""What the scripts in `training/` call: distillation of denoisers, fine-tuning of VAE decoders."""
