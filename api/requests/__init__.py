"""What a request must be: its body, query, headers and ids, each field bounded, each fault in OpenAI's words."""
