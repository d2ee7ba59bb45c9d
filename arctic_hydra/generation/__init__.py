"""Text generation: prompts, answers, and their comparison with reference answers."""
