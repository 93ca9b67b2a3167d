"""The quickstart's made-up world: corpus, questions, demonstrations and tokenizer. Needs numpy alone."""
