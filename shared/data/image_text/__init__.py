"""Pictures with texts: annotations, pairs, questions, sentences, expressions."""
