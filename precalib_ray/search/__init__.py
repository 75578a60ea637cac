"""The search for a recipe: trial log, sampler, objectives; without Ray and MLflow."""
