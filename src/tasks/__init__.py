"""The finetuning and inference runners: retrieval, question answering, multiple choice."""
