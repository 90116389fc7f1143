"""One front-end's conversation: messages, session and state; no process, no clock."""
