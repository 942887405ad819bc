"""A real language model as a base, without a hub and without a GPU: SmolLM2-135M-Instruct, from a package of PyPI.

`source` reads it, a Llama of 135 M parameters. `embed` puts it into Qwen3-VL's architecture, where it says the same,
with the vision tower that it never had; `sight` teaches that tower to read handwritten digits. Service and trainer run
it as they run every Qwen3-VL.
"""
