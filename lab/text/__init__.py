"""Text encoders: prompts to token states, a mask and one pooled vector. One module per library, one door each."""
