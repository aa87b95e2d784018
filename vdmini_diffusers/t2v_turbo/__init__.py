"""The files of T2V-Turbo and VideoCrafter2: what their tensors are called, and what they are in diffusers."""
