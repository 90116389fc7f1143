"""The master's side of the workers: who serves which queues, and what follows a death."""
