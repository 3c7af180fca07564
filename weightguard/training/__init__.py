"""Fine-tuning of causal language models on the responses of rows: seeded, repeatable, and resumable after a kill.

A loop of our own, not `transformers.Trainer`: a run that was killed goes on to the very weights of one that was not,
the order of the rows depends on seed and step alone, and a guard sees a plain torch optimizer.
"""
