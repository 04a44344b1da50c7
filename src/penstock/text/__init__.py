"""Text in and out: tokenizer, chat template, incremental detokenizer, stop strings, the parts of an answer."""
