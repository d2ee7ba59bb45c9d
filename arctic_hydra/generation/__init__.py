"""Generation: prompts as tokens, answers of a model to them, and their comparison with reference answers."""
