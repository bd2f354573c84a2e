"""The OpenAI API: completions, chat, embeddings."""
