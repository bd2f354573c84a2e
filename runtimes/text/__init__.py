"""Text generation shared by the runtimes: prompts, sampling, stop strings, scores."""
