"""The best of several pictures of a prompt: who judges, which rounds, and what it gains."""
