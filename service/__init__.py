"""The service: one frozen Qwen3-VL base in vLLM, many adapters, exact log-probs over HTTP."""
