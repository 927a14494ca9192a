"""Models of requests: each field has a bound, and each fault OpenAI's words."""
