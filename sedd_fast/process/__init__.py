"""The noise process: graphs (where tokens jump to) and schedules (when)."""
